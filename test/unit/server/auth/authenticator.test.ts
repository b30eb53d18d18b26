import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import { createServer, request as httpsRequest } from "node:https";
import type { AddressInfo } from "node:net";
import { TLSSocket } from "node:tls";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { type Authenticator, createAuthenticator } from "../../../../agent/server/auth/authenticator.ts";
import { readBundle } from "../../../../agent/server/auth/certificate.ts";
import { withoutHandshakeVerdict } from "../../../../agent/server/auth/handshake.ts";
import type { UserInfo } from "../../../../agent/server/port.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import {
  cn,
  dayMs,
  ext,
  type Issued,
  issue,
  issueAuthority,
  issueClient,
  name,
  oid,
  sha256,
  startMs,
} from "./certificates.ts";
import { FakeReviews, refusal } from "./fake-reviews.ts";
import { valueOf } from "./metrics.ts";

// Real TLS on loopback: what Node.js and OpenSSL show of a client's certificates is part of what is tried.

const root = issueAuthority("kubernetes");
const serving = issue({ subject: cn("n1"), notAfterMs: Date.UTC(2100, 0, 1) });
const admin = issueClient(root, { subject: name([oid.organization, "system:masters"], [oid.commonName, "admin"]) });
const adminUser: UserInfo = {
  username: "admin",
  uid: "",
  groups: ["system:masters", "system:authenticated"],
  extra: { "authentication.kubernetes.io/credential-id": [`X509SHA256=${sha256(admin.certificate.x509.raw)}`] },
};
const anonymous: UserInfo = { username: "system:anonymous", uid: "", groups: ["system:unauthenticated"], extra: {} };
const robot: UserInfo = { username: "robot", uid: "7", groups: ["robots", "system:authenticated"], extra: {} };

let stack: AsyncDisposableStack;
let clock: FakeClock;
let api: FakeReviews;
let metrics: MetricsRegistry;
let bundle: Issued[];
let roots: ReturnType<typeof readBundle>;

beforeEach(() => {
  stack = new AsyncDisposableStack();
  clock = new FakeClock();
  metrics = new MetricsRegistry();
  trust(root);
  api = new FakeReviews(({ token }) =>
    token === "good"
      ? { authenticated: true, user: { username: "robot", uid: "7", groups: ["robots"] } }
      : { authenticated: false, error: "unknown token" },
  );
});
afterEach(async () => stack.disposeAsync());

function trust(...authorities: Issued[]): void {
  bundle = authorities;
  roots = readBundle(Buffer.from(bundle.map(({ pem }) => pem).join("")));
}

interface Enabled {
  x509?: boolean;
  tokens?: boolean;
  anonymous?: boolean;
}

function create({ x509 = true, tokens = true, anonymous: allowsAnonymous = false }: Enabled): Authenticator {
  return createAuthenticator({
    clientCA: x509 ? { roots: () => roots } : undefined,
    readsCertificateUID: true,
    tokens: tokens ? { api, cacheTTLMs: 1000 } : undefined,
    allowsAnonymous,
    clock,
    log: silentLogger,
    metrics,
    stop: new AbortController().signal,
    random: () => 0,
  });
}

interface Answer {
  status: number;
  user?: UserInfo;
  headers?: Record<string, unknown>;
}

interface Ask {
  client?: Issued;
  /** Sent behind the client's certificate. */
  chain?: Issued[];
  headers?: Record<string, string | string[]>;
}

/** A server that answers with whom it sees, and which headers are left of the request. */
async function serve(enabled: Enabled = {}): Promise<(ask?: Ask) => Promise<Answer>> {
  const authenticator = create(enabled);
  const answer = async (request: IncomingMessage) => {
    const found = await authenticator.authenticate(request, request.socket);
    return JSON.stringify({ status: found === undefined ? 401 : 200, user: found?.user, headers: request.headers });
  };
  const server = createServer(
    {
      cert: serving.pem,
      key: serving.keyPem,
      ca: bundle.map(({ pem }) => pem),
      requestCert: true,
      rejectUnauthorized: false,
      ...withoutHandshakeVerdict,
      shouldUpgradeCallback: () => false,
    },
    (request, response) => {
      if (!(request.socket instanceof TLSSocket)) throw new Error("no TLS");
      expect(request.socket.authorized).toBe(false);
      void answer(request).then((text) => response.end(text));
    },
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  stack.defer(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return async ({ client, chain = [], headers = {} } = {}) => {
    const credentials =
      client === undefined ? {} : { cert: [client, ...chain].map(({ pem }) => pem).join(""), key: client.keyPem };
    const options = { host: "127.0.0.1", port, rejectUnauthorized: false, agent: false, headers, ...credentials };
    const sent = httpsRequest(options);
    sent.end();
    const [response] = (await once(sent, "response")) as [IncomingMessage];
    const text = (await response.toArray()).join("");
    return JSON.parse(text) as Answer;
  };
}

describe("client certificates", () => {
  test("make the user that their subject names", async () => {
    const ask = await serve();
    expect(await ask({ client: admin })).toMatchObject({ status: 200, user: adminUser });
  });

  test("count with the intermediate certificates that the client sends, and only with them", async () => {
    const first = issueAuthority("first", { issuer: root });
    const second = issueAuthority("second", { issuer: first });
    const client = issueClient(second);
    const ask = await serve();
    expect(await ask({ client, chain: [second, first] })).toMatchObject({ status: 200, user: { username: "someone" } });
    expect(await ask({ client, chain: [second] })).toMatchObject({ status: 401 });
  });

  const refused: { name: string; client: Issued }[] = [
    { name: "that have expired", client: issueClient(root, { notAfterMs: startMs - 1000 }) },
    { name: "that are not valid yet", client: issueClient(root, { notBeforeMs: startMs + 1000 }) },
    { name: "of another authority with the same name", client: issueClient(issueAuthority("kubernetes")) },
    { name: "that are self-signed in the authority's name", client: issueAuthority("kubernetes") },
    { name: "for servers", client: issue({ issuer: root, extensions: [ext.purposes(oid.serverAuth)] }) },
    {
      name: "with two UIDs",
      client: issueClient(root, { subject: name([oid.commonName, "u"], [oid.uid, "1"], [oid.uid, "2"]) }),
    },
  ];
  for (const { name: title, client } of refused) {
    test(`${title} are refused, even where nobody needs one`, async () => {
      const ask = await serve({ anonymous: true });
      expect(await ask({ client })).toMatchObject({ status: 401 });
    });
  }

  test("without a common name are as good as none", async () => {
    const client = issueClient(root, { subject: name([oid.organization, "system:masters"]) });
    const strict = await serve();
    expect(await strict({ client })).toMatchObject({ status: 401 });
    metrics = new MetricsRegistry();
    const open = await serve({ anonymous: true });
    expect(await open({ client })).toMatchObject({ user: anonymous });
  });

  test("do not count when the server has no client CA", async () => {
    const ask = await serve({ x509: false });
    expect(await ask({ client: admin })).toMatchObject({ status: 401 });
  });

  test("that fail leave the way open for a token", async () => {
    const ask = await serve();
    const client = issueClient(issueAuthority("other"));
    expect(await ask({ client, headers: { authorization: "Bearer good" } })).toMatchObject({ user: robot });
  });

  test("observe how long they have left", async () => {
    const ask = await serve();
    await ask({ client: admin });
    await ask();
    expect(await valueOf(metrics, "apiserver_client_certificate_expiration_seconds")).toBe(1);
  });
});

describe("on one connection, which stays open", () => {
  /** Requests one after the other on the same socket. */
  async function connect(authenticator: Authenticator, client: Issued): Promise<() => Promise<string | undefined>> {
    const accepted = Promise.withResolvers<TLSSocket>();
    const server = createServer({
      cert: serving.pem,
      key: serving.keyPem,
      ca: bundle.map(({ pem }) => pem),
      requestCert: true,
      rejectUnauthorized: false,
      ...withoutHandshakeVerdict,
    });
    server.on("secureConnection", (socket: TLSSocket) => accepted.resolve(socket));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    stack.defer(() => void server.close());
    const { port } = server.address() as AddressInfo;
    const options = { host: "127.0.0.1", port, rejectUnauthorized: false, cert: client.pem, key: client.keyPem };
    const sent = httpsRequest({ ...options, agent: false });
    sent.on("error", () => {});
    sent.flushHeaders();
    const socket = await accepted.promise;
    stack.defer(() => {
      sent.destroy();
      socket.destroy();
    });
    const request = { headers: {}, headersDistinct: {}, rawHeaders: [] as string[] } as unknown as IncomingMessage;
    return async () => (await authenticator.authenticate(request, socket))?.user.username;
  }

  test("a certificate ends when it expires, and when its authority goes; it counts again when that comes back", async () => {
    const who = await connect(create({ tokens: false }), admin);
    expect(await who()).toBe("admin");
    trust(issueAuthority("kubernetes"));
    expect(await who()).toBeUndefined();
    trust(issueAuthority("other"), root);
    expect(await who()).toBe("admin");
    expect(await who()).toBe("admin");
    await clock.advance(dayMs + 1);
    expect(await who()).toBeUndefined();
  });

  test("a certificate begins to count when its authority comes", async () => {
    trust(issueAuthority("other"));
    const who = await connect(create({ tokens: false }), admin);
    expect(await who()).toBeUndefined();
    trust(root);
    expect(await who()).toBe("admin");
  });
});

describe("tokens", () => {
  test("make the user that the API server names, and go no further", async () => {
    const ask = await serve();
    const { user, headers } = await ask({ headers: { authorization: "Bearer good", "x-other": "1" } });
    expect(user).toEqual(robot);
    expect(headers).toMatchObject({ "x-other": "1" });
    expect(headers).not.toHaveProperty("authorization");
  });

  test("in a subprotocol do the same, and leave the others", async () => {
    const ask = await serve();
    const token = `base64url.bearer.authorization.k8s.io.${Buffer.from("good").toString("base64url")}`;
    const { user, headers } = await ask({
      headers: { connection: "Upgrade", upgrade: "websocket", "sec-websocket-protocol": `v5.channel.k8s.io, ${token}` },
    });
    expect(user).toEqual(robot);
    expect(headers?.["sec-websocket-protocol"]).toBe("v5.channel.k8s.io");
  });

  test("that are wrong are refused, even where nobody needs one", async () => {
    const ask = await serve({ anonymous: true });
    expect(await ask({ headers: { authorization: "Bearer bad" } })).toMatchObject({ status: 401 });
    expect(await ask({ headers: { authorization: `Bearer ${"x".repeat(15_000)}` } })).toMatchObject({ status: 401 });
  });

  test("that are empty, or of another kind, are none", async () => {
    const ask = await serve({ anonymous: true });
    for (const authorization of ["Bearer ", "Basic dTpw", "good", ""]) {
      expect(await ask({ headers: { authorization } })).toMatchObject({ status: 200, user: anonymous });
    }
    expect(api.asked).toEqual([]);
  });

  test("are refused when the API server cannot say", async () => {
    const ask = await serve({ anonymous: true });
    api.errors.push(refusal(403));
    expect(await ask({ headers: { authorization: "Bearer good" } })).toMatchObject({ status: 401 });
    expect(await ask({ headers: { authorization: "Bearer good" } })).toMatchObject({ status: 200 });
  });

  test("do not count when the webhook is off", async () => {
    const ask = await serve({ tokens: false });
    expect(await ask({ headers: { authorization: "Bearer good" } })).toMatchObject({ status: 401 });
    expect(api.asked).toEqual([]);
  });

  test("do not travel on from a request that its certificate has authenticated", async () => {
    const ask = await serve();
    const { user, headers } = await ask({ client: admin, headers: { authorization: "Bearer good" } });
    expect(user).toEqual(adminUser);
    expect(headers).not.toHaveProperty("authorization");
    expect(api.asked).toEqual([]);
  });
});

describe("without a credential", () => {
  test("nobody comes in by default, and anonymous where it is allowed", async () => {
    const strict = await serve();
    expect(await strict()).toMatchObject({ status: 401 });
    metrics = new MetricsRegistry();
    const open = await serve({ anonymous: true });
    expect(await open()).toMatchObject({ status: 200, user: anonymous });
    metrics = new MetricsRegistry();
    const alone = await serve({ x509: false, tokens: false, anonymous: true });
    expect(await alone({ client: admin, headers: { authorization: "Bearer x" } })).toMatchObject({ user: anonymous });
  });

  test("there is no way in at all: a mistake", () => {
    expect(() => create({ x509: false, tokens: false })).toThrow("no method of authentication is configured");
  });
});

describe("the group of everybody who is known", () => {
  const groupsOf = async (user: object) => {
    api.answerWith(() => ({ authenticated: true, user }));
    const ask = await serve();
    return (await ask({ headers: { authorization: "Bearer x" } })).user?.groups;
  };
  test("is added", async () => expect(await groupsOf({ username: "a" })).toEqual(["system:authenticated"]));
  test("is not added twice", async () => {
    const groups = ["system:authenticated", "g"];
    expect(await groupsOf({ username: "a", groups })).toEqual(groups);
  });
  test("is not added to those who are not", async () => {
    expect(await groupsOf({ username: "system:anonymous" })).toEqual([]);
    metrics = new MetricsRegistry();
    expect(await groupsOf({ username: "a", groups: ["system:unauthenticated"] })).toEqual(["system:unauthenticated"]);
  });
});
