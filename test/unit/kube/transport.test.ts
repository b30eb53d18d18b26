import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createAccess } from "../../../agent/kube/access.ts";
import { createApiClient } from "../../../agent/kube/client.ts";
import { nodes } from "../../../agent/kube/resources.ts";
import { transportLimits } from "../../../agent/kube/connection.ts";
import { createTransport } from "../../../agent/kube/transport.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { clientPair, FakeHttp, type Handler, Relay } from "../../support/fake-http.ts";
import { FakeClock, settle } from "./fake-clock.ts";
import { connectTo, specFor, until } from "./support.ts";

const n1 = { name: "n1" };
const node: Handler = (_, answer) => answer.json(200, { metadata: { name: "n1" } });

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-kube-"));
});
afterEach(async () => rm(dir, { recursive: true }));

test.each([
  { name: "HTTP/2 where the server speaks it", protocol: "h2", disableHttp2: false, want: "2.0" },
  { name: "HTTP/1.1 where it does not", protocol: "https", disableHttp2: false, want: "1.1" },
  { name: "HTTP/1.1 without TLS", protocol: "http", disableHttp2: false, want: "1.1" },
] as const)("speaks $name, on one connection", async ({ protocol, disableHttp2, want }) => {
  await using server = await FakeHttp.start(node, { protocol });
  await using client = connectTo(server.url, { disableHttp2 });
  for (let i = 0; i < 3; i += 1) await client.get(nodes, n1);
  expect(server.received.map(({ httpVersion }) => httpVersion)).toEqual([want, want, want]);
  expect(server.connections).toBe(protocol === "https" ? 2 : 1); // one more to find out
});

test("DISABLE_HTTP2 is heeded", async () => {
  await using server = await FakeHttp.start(node, { protocol: "https" });
  await using client = connectTo(server.url, { disableHttp2: true });
  await client.get(nodes, n1);
  expect(server.connections).toBe(1);
});

test("a path prefix in the server's URL is kept", async () => {
  await using server = await FakeHttp.start(node);
  await using client = connectTo(`${server.url}/k8s/clusters/c1/`);
  await client.get(nodes, n1);
  expect(server.received[0]?.path).toBe("/k8s/clusters/c1/api/v1/nodes/n1");
});

test.each(["h2", "https"] as const)(
  "over %s: headers of the credentials are sent, lists of values too",
  async (protocol) => {
    await using server = await FakeHttp.start(node, { protocol });
    const impersonate = { "impersonate-user": "u", "impersonate-group": ["g1", "g2"] };
    await using client = connectTo(server.url, { spec: { impersonate, token: { data: Buffer.from("s3cret\n") } } });
    await client.get(nodes, n1);
    expect(server.received[0]?.headers).toMatchObject({
      authorization: "Bearer s3cret",
      "impersonate-user": "u",
      "impersonate-group": "g1, g2",
    });
  },
);

test("a certificate of somebody else's authority is refused, unless verification is off", async () => {
  await using server = await FakeHttp.start(node);
  const other = clientPair("other").certificate;
  await using strict = connectTo(server.url, { spec: { ca: { data: Buffer.from(other) } } });
  await expect(strict.get(nodes, n1)).rejects.toMatchObject({
    code: "Unavailable",
    message: /TLS handshake: .*certificate/,
  });
  await using wrongName = connectTo(server.url, { spec: { serverName: "kubernetes" } });
  await expect(wrongName.get(nodes, n1)).rejects.toMatchObject({ code: "Unavailable", message: /kubernetes/ });
  await using named = connectTo(server.url, { spec: { serverName: "localhost" } });
  await named.get(nodes, n1);
  const { ca: _, ...spec } = specFor(server.url, { insecureSkipVerify: true });
  const deps = { clock: new FakeClock(), log: silentLogger };
  await using lax = createApiClient({ ...deps, access: createAccess(spec, deps), userAgent: "t", qps: -1, burst: 0 });
  await lax.get(nodes, n1);
});

test("a server that accepts and then says nothing is given up", async () => {
  await using server = await FakeHttp.start(node);
  await using relay = await Relay.start(server.port);
  await using client = connectTo(`https://127.0.0.1:${relay.port}`, { limits: { handshakeMs: 50 }, timeoutMs: 2_000 });
  relay.isDeaf = true;
  const call = client.get(nodes, n1);
  await expect(call).rejects.toMatchObject({ code: "Unavailable", message: /TLS handshake: no answer within 50 ms/ });
  relay.isDeaf = false;
  await client.get(nodes, n1);
});

test("concurrent calls share one dial, and what exceeds a session's streams goes to another connection", async () => {
  const held: (() => void)[] = [];
  const handler: Handler = (_, answer) => void held.push(() => answer.json(200, { metadata: { name: "n1" } }));
  await using server = await FakeHttp.start(handler, { maxConcurrentStreams: 3 });
  await using client = connectTo(server.url);
  const first = client.get(nodes, n1);
  await until(() => held.length === 1);
  expect(server.connections).toBe(1);
  const others = Array.from({ length: 4 }, () => client.get(nodes, n1));
  await until(() => held.length === 5);
  expect(server.connections).toBe(2);
  for (const answer of held) answer();
  await Promise.all([first, ...others]);
});

test("GOAWAY: what runs is finished, what comes goes to a new connection", async () => {
  let finish = () => {};
  await using server = await FakeHttp.start((request, answer) => {
    if (request.path.endsWith("slow")) finish = () => answer.json(200, { metadata: { name: "slow" } });
    else void node(request, answer);
  });
  await using client = connectTo(server.url);
  const slow = client.get(nodes, { name: "slow" });
  await until(() => server.received.length === 1);
  for (const session of server.sessions) session.goaway();
  await until(() => server.sessions.size === 1);
  await new Promise((resolve) => void setImmediate(resolve));
  await client.get(nodes, n1);
  await until(() => server.connections === 2);
  finish();
  expect((await slow).metadata.name).toBe("slow");
  await until(() => server.sessions.size === 1); // the old one has closed
});

test("a connection that breaks is replaced by the next call", async () => {
  await using server = await FakeHttp.start(node);
  await using client = connectTo(server.url);
  await client.get(nodes, n1);
  server.dropConnections();
  await client.get(nodes, n1); // retried inside if it was sent on the dying connection
  expect(server.connections).toBe(2);
});

test("a half-open connection is found by an unanswered ping, and the call is asked again elsewhere", async () => {
  await using server = await FakeHttp.start(node);
  await using relay = await Relay.start(server.port);
  const limits = { suspectMs: 20, pingTimeoutMs: 30 };
  await using client = connectTo(`https://127.0.0.1:${relay.port}`, { limits });
  await client.get(nodes, n1);
  relay.freeze();
  const startMs = performance.now();
  await client.get(nodes, n1);
  expect(performance.now() - startMs).toBeLessThan(2_000);
  expect(relay.connections).toBe(2);
});

test("an idle half-open connection is found by pings alone, and its watch ends", async () => {
  await using server = await FakeHttp.start((_, answer) =>
    answer.event("BOOKMARK", { metadata: { resourceVersion: "1" } }),
  );
  await using relay = await Relay.start(server.port);
  const limits = { pingIdleMs: 30, pingTimeoutMs: 30 };
  await using client = connectTo(`https://127.0.0.1:${relay.port}`, { limits });
  const watch = await client.watch(nodes, { resourceVersion: "1", timeoutSeconds: 300 }, new AbortController().signal);
  relay.freeze();
  const read = async () => {
    for await (const _ of watch.body) continue;
  };
  await expect(read()).rejects.toMatchObject({ code: "Unavailable", message: /no answer to a ping/ });
});

test("pings keep a quiet but living connection", async () => {
  await using server = await FakeHttp.start(node);
  await using client = connectTo(server.url, { limits: { pingIdleMs: 10, pingTimeoutMs: 500 } });
  await client.get(nodes, n1);
  await new Promise((resolve) => void setTimeout(resolve, 100));
  await client.get(nodes, n1);
  expect(server.connections).toBe(1);
});

test.each(["h2", "https"] as const)(
  "over %s: resetConnections breaks watches and makes calls connect anew",
  async (protocol) => {
    await using server = await FakeHttp.start(
      (request, answer) => {
        if (request.query.has("watch")) answer.event("BOOKMARK", { metadata: { resourceVersion: "1" } });
        else void node(request, answer);
      },
      { protocol },
    );
    await using client = connectTo(server.url);
    const watch = await client.watch(
      nodes,
      { resourceVersion: "1", timeoutSeconds: 300 },
      new AbortController().signal,
    );
    await client.get(nodes, n1);
    const before = server.connections;
    client.resetConnections();
    const read = async () => {
      for await (const _ of watch.body) continue;
    };
    await expect(read()).rejects.toMatchObject({ code: "Unavailable" });
    await client.get(nodes, n1);
    expect(server.connections).toBe(before + 1);
  },
);

test("an aborted watch lets go of its stream", async () => {
  let isClosed = false;
  await using server = await FakeHttp.start((_, answer) => {
    answer.event("BOOKMARK", { metadata: { resourceVersion: "1" } });
    void answer.closed.then(() => {
      isClosed = true;
    });
  });
  await using client = connectTo(server.url);
  const stop = new AbortController();
  const watch = await client.watch(nodes, { resourceVersion: "1", timeoutSeconds: 300 }, stop.signal);
  const read = async () => {
    for await (const _ of watch.body) stop.abort();
  };
  await expect(read()).rejects.toMatchObject({ code: "Canceled" });
  await until(() => isClosed);
});

test("a rotated client certificate is used for a new connection; the old one drains and ends", async () => {
  const clock = new FakeClock();
  const put = async (name: string) => {
    const { certificate, key } = clientPair(name);
    await writeFile(join(dir, "new.pem"), `${certificate}${key}`);
    await rename(join(dir, "new.pem"), join(dir, "client.pem"));
  };
  await put("first");
  await using server = await FakeHttp.start(
    (request, answer) => {
      if (request.query.has("watch")) answer.event("BOOKMARK", { metadata: { resourceVersion: "1" } });
      else void node(request, answer);
    },
    { askClientCertificate: true },
  );
  const file = { file: join(dir, "client.pem") };
  const deps = { clock, log: silentLogger };
  const access = createAccess(specFor(server.url, { cert: file, key: file }), deps);
  await using transport = createTransport({ ...deps, access, userAgent: "t" });
  const client = createApiClient({ ...deps, transport, userAgent: "t", qps: -1, burst: 0 });
  const watch = await client.watch(nodes, { resourceVersion: "1", timeoutSeconds: 300 }, new AbortController().signal);
  await client.get(nodes, n1);
  await put("second");
  await client.get(nodes, n1); // within the second in which files are believed unchanged
  await clock.advance(1_000);
  await client.get(nodes, n1);
  expect(server.received.map(({ clientName }) => clientName)).toEqual(["first", "first", "first", "second"]);
  expect(server.connections).toBe(2);
  const read = async () => {
    for await (const _ of watch.body) continue;
  };
  const ended = expect(read()).rejects.toMatchObject({ code: "Unavailable" });
  await clock.advance(transportLimits.retiredMs);
  await ended;
  await until(() => server.sessions.size === 1);
});

test("401: a token that was replaced in the same second is read again and the call repeated", async () => {
  await writeFile(join(dir, "token"), "old");
  await using server = await FakeHttp.start((request, answer) => {
    if (request.headers["authorization"] === "Bearer new") void node(request, answer);
    else answer.status(401, "Unauthorized");
  });
  const deps = { clock: new FakeClock(), log: silentLogger };
  const access = createAccess(specFor(server.url, { token: { file: join(dir, "token") } }), deps);
  await using client = createApiClient({ ...deps, access, userAgent: "t", qps: -1, burst: 0 });
  await expect(client.get(nodes, n1)).rejects.toMatchObject({ code: "Unauthorized" });
  expect(server.received).toHaveLength(1);
  await access.credentials();
  await writeFile(join(dir, "token"), "newer");
  await writeFile(join(dir, "token.tmp"), "new");
  await rename(join(dir, "token.tmp"), join(dir, "token"));
  await client.get(nodes, n1);
});

test("closing waits for nothing and leaves nothing", async () => {
  await using server = await FakeHttp.start(() => {});
  const client = connectTo(server.url);
  const call = expect(client.get(nodes, n1)).rejects.toMatchObject({ code: "Canceled" });
  await until(() => server.received.length === 1);
  await client[Symbol.asyncDispose]();
  await call;
  await settle();
  await until(() => server.sessions.size === 0);
  await expect(client.get(nodes, n1)).rejects.toMatchObject({ code: "Canceled" });
});

test("the limits are the reference's", () => {
  expect(transportLimits).toMatchObject({
    connectMs: 30_000,
    handshakeMs: 10_000,
    pingIdleMs: 30_000,
    pingTimeoutMs: 15_000,
  });
});
