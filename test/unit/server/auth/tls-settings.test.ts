import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { connect, type ConnectionOptions, createServer } from "node:tls";
import { describe, expect, test } from "vitest";
import { readTlsSettings, type TlsFields } from "../../../../agent/config/tls.ts";
import { cn, issue } from "./certificates.ts";

const serving = issue({ subject: cn("n1"), notAfterMs: Date.UTC(2100, 0, 1) });

/** What a client and a server of these fields agree on: `TLSv1.3`, or `TLSv1.2 <cipher>`; or the client's error. */
async function negotiate(fields: Partial<TlsFields>, client: ConnectionOptions): Promise<string> {
  const { options } = readTlsSettings({ tlsMinVersion: "", tlsCipherSuites: [], tlsCurvePreferences: [], ...fields });
  const server = createServer({ ...options, cert: serving.pem, key: serving.keyPem });
  server.on("tlsClientError", () => {});
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false, ...client });
  try {
    await once(socket, "secureConnect");
    const version = socket.getProtocol();
    return version === "TLSv1.3" ? version : `${version} ${socket.getCipher().name}`;
  } catch (err) {
    return err instanceof Error && "code" in err ? String(err.code) : String(err);
  } finally {
    socket.destroy();
    server.close();
  }
}

const upTo = (maxVersion: NonNullable<ConnectionOptions["maxVersion"]>, ciphers = "DEFAULT"): ConnectionOptions => ({
  minVersion: "TLSv1",
  maxVersion,
  ciphers: `${ciphers}:@SECLEVEL=0`,
});
const refusedVersion = "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION";
const refusedHandshake = /^ERR_SSL_.*HANDSHAKE_FAILURE$/;

describe("a server with the configured TLS", () => {
  const cases: { name: string; fields: Partial<TlsFields>; client: ConnectionOptions; want: string | RegExp }[] = [
    { name: "speaks TLS 1.3", fields: {}, client: {}, want: "TLSv1.3" },
    { name: "speaks TLS 1.2", fields: {}, client: upTo("TLSv1.2"), want: /^TLSv1\.2 ECDHE-ECDSA-/ },
    { name: "refuses TLS 1.1 unless it is allowed", fields: {}, client: upTo("TLSv1.1"), want: refusedVersion },
    {
      name: "speaks TLS 1.0 where it is allowed",
      fields: { tlsMinVersion: "VersionTLS10" },
      client: upTo("TLSv1"),
      want: /^TLSv1 ECDHE-ECDSA-AES/,
    },
    {
      name: "refuses TLS 1.2 where 1.3 is the lowest",
      fields: { tlsMinVersion: "VersionTLS13" },
      client: upTo("TLSv1.2"),
      want: refusedVersion,
    },
    {
      name: "uses the configured suite",
      fields: { tlsCipherSuites: ["TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"] },
      client: upTo("TLSv1.2"),
      want: "TLSv1.2 ECDHE-ECDSA-AES256-SHA",
    },
    {
      name: "refuses a suite that is not configured",
      fields: { tlsCipherSuites: ["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"] },
      client: upTo("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"),
      want: refusedHandshake,
    },
    {
      name: "keeps TLS 1.3 beside configured suites",
      fields: { tlsCipherSuites: ["TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"] },
      client: {},
      want: "TLSv1.3",
    },
    {
      name: "uses a configured curve",
      fields: { tlsCurvePreferences: [24] },
      client: { ecdhCurve: "X25519:P-384" },
      want: "TLSv1.3",
    },
    {
      name: "refuses a curve that is not configured",
      fields: { tlsCurvePreferences: [24] },
      client: { ecdhCurve: "X25519" },
      want: refusedHandshake,
    },
  ];
  for (const { name, fields, client, want } of cases) {
    test(name, async () => {
      const got = await negotiate(fields, client);
      if (typeof want === "string") expect(got).toBe(want);
      else expect(got).toMatch(want);
    });
  }
});
