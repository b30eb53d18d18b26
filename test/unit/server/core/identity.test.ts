import { expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { createAuthenticator } from "../../../../agent/server/auth/authenticator.ts";
import { readBundle } from "../../../../agent/server/auth/certificate.ts";
import { CertificateAuthority } from "../../../support/apiserver/pki.ts";
import { authority, Changing, pem, RawClient, startServer, testAuth } from "./support.ts";

const serving = pem(authority.issue({ commonName: "n", usage: "server", names: ["localhost"] }));
const get = "GET /pods HTTP/1.1\r\nHost: a\r\n\r\n";

test("a client certificate counts for as long as its authority does, on connections that are open, too", async () => {
  const clientCA = new Changing(Buffer.from(authority.certificate));
  const stop = new AbortController();
  const authenticator = createAuthenticator({
    clientCA: { roots: () => readBundle(clientCA.current()) },
    readsCertificateUID: true,
    tokens: undefined,
    allowsAnonymous: false,
    clock: systemClock,
    log: silentLogger,
    metrics: new MetricsRegistry(),
    stop: stop.signal,
  });
  const { authorizer, asked } = testAuth();
  const tls = { options: {}, certificate: new Changing(serving), clientCA };
  await using server = await startServer({ tls, authenticator, authorizer });
  const dial = (issuer: CertificateAuthority, commonName: string) =>
    RawClient.tls(server.ports.kubelet, pem(issuer.issue({ commonName, organizations: ["masters"], usage: "client" })));

  const stranger = CertificateAuthority.create();
  await using good = await dial(authority, "apiserver");
  await using bad = await dial(stranger, "apiserver");
  for (const { socket } of [good, bad]) socket.write(get);
  await good.until(/200 OK.*GET pods/s);
  await bad.until(/401 Unauthorized/);

  clientCA.set(Buffer.from(stranger.certificate));
  for (const { socket } of [good, bad]) socket.write(get);
  await good.until(/401 Unauthorized/);
  await bad.until(/200 OK.*GET pods/s);
  await using returning = await dial(stranger, "mallory");
  returning.socket.write(get);
  await returning.until(/200 OK/);
  expect(asked).toEqual(["apiserver get pods,proxy", "apiserver get pods,proxy", "mallory get pods,proxy"]);
  stop.abort();
});
