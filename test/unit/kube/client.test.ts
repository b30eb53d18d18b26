import { expect, test } from "vitest";
import { createAccess } from "../../../agent/kube/access.ts";
import { connectionRetriesMax, createApiClient, requestBytesMax } from "../../../agent/kube/client.ts";
import { events, leases, nodes, pods, secrets } from "../../../agent/kube/resources.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { FakeHttp, type Handler } from "../../support/fake-http.ts";
import { connectTo, pod, specFor } from "./support.ts";

const podPath = "/api/v1/namespaces/ns/pods";

async function serve(handler: Handler, options: Parameters<typeof connectTo>[1] = {}) {
  const stack = new AsyncDisposableStack();
  const server = stack.use(await FakeHttp.start(handler));
  const client = stack.use(connectTo(server.url, options));
  return { server, client, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

test("each verb asks for the right thing", async () => {
  await using t = await serve((_, answer) => answer.json(200, pod("a", "1")));
  const { client, server } = t;
  await client.get(pods, { namespace: "ns", name: "a" });
  await client.get(nodes, { name: "n1" });
  await client.create(pods, pod("a", "1"));
  await client.update(leases, { metadata: { name: "n1", namespace: "kube-node-lease", resourceVersion: "3" } });
  await client.update(pods, pod("a", "1"), { subresource: "status" });
  await client.delete(pods, { namespace: "ns", name: "a" }, { gracePeriodSeconds: 0, uid: "u1" });
  await client.delete(pods, { namespace: "ns", name: "a" });
  await client.createSubresource(pods, { namespace: "ns", name: "a" }, "eviction", { x: 1 });
  await client.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", { spec: {} });
  expect(
    server.received.map(({ method, path, body }) => [method, path, body === "" ? undefined : JSON.parse(body)]),
  ).toEqual([
    ["GET", `${podPath}/a`, undefined],
    ["GET", "/api/v1/nodes/n1", undefined],
    ["POST", podPath, expect.objectContaining({ kind: "Pod", apiVersion: "v1" })],
    [
      "PUT",
      "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1",
      expect.objectContaining({ kind: "Lease", apiVersion: "coordination.k8s.io/v1" }),
    ],
    ["PUT", `${podPath}/a/status`, expect.anything()],
    [
      "DELETE",
      `${podPath}/a`,
      { apiVersion: "v1", kind: "DeleteOptions", gracePeriodSeconds: 0, preconditions: { uid: "u1" } },
    ],
    ["DELETE", `${podPath}/a`, { apiVersion: "v1", kind: "DeleteOptions" }],
    ["POST", `${podPath}/a/eviction`, { x: 1 }],
    ["POST", "/apis/authentication.k8s.io/v1/tokenreviews", { spec: {} }],
  ]);
  const [first] = server.received;
  expect(first?.headers).toMatchObject({ "user-agent": "kubelet/test", accept: "application/json" });
  expect(first?.httpVersion).toBe("2.0");
  expect(server.connections).toBe(1);
});

test.each([
  ["strategic", "application/strategic-merge-patch+json", ""],
  ["merge", "application/merge-patch+json", ""],
  ["json", "application/json-patch+json", ""],
  ["apply", "application/apply-patch+yaml", "fieldManager=kubelet&force=true"],
] as const)("patch type %s has content type %s", async (type, contentType, query) => {
  await using t = await serve((_, answer) => answer.json(200, pod("a", "1")));
  await t.client.patch(
    pods,
    { namespace: "ns", name: "a" },
    { metadata: { uid: "u1" } },
    { type, subresource: "status" },
  );
  expect(t.server.received[0]).toMatchObject({
    method: "PATCH",
    path: `${podPath}/a/status`,
    headers: { "content-type": contentType },
  });
  expect(t.server.received[0]?.query.toString()).toBe(query);
  expect(JSON.parse(t.server.received[0]?.body ?? "")).toEqual({ metadata: { uid: "u1" } });
});

test("a name cannot leave its collection, and a namespace cannot be forgotten", async () => {
  await using t = await serve((_, answer) => answer.status(404, "NotFound"));
  await expect(t.client.get(pods, { namespace: "ns", name: "../../secrets/x" })).rejects.toMatchObject({
    code: "NotFound",
  });
  expect(t.server.received[0]?.path).toBe(`${podPath}/..%2F..%2Fsecrets%2Fx`);
  await expect(t.client.get(pods, { namespace: "ns", name: ".." })).rejects.toMatchObject({ code: "Invalid" });
  await expect(t.client.get(pods, { name: "a" })).rejects.toThrow('Pod "a" has no namespace');
  expect(t.server.received).toHaveLength(1);
});

test("a list is read in pages; items carry kind and apiVersion", async () => {
  await using t = await serve(({ query }, answer) => {
    const at = Number(query.get("continue") ?? 0);
    const metadata = { resourceVersion: "50", ...(at < 2 ? { continue: String(at + 1) } : {}) };
    answer.json(200, { kind: "PodList", metadata, items: [{ metadata: { name: `p${at}` } }] });
  });
  const list = await t.client.list(pods, { namespace: "ns", labelSelector: "a=b", fieldSelector: "spec.nodeName=n1" });
  expect(list.items.map((p) => [p.metadata.name, p.kind, p.apiVersion])).toEqual(
    [0, 1, 2].map((i) => [`p${i}`, "Pod", "v1"]),
  );
  expect(list.resourceVersion).toBe("50");
  expect(t.server.received[1]?.query.toString()).toBe(
    "labelSelector=a%3Db&fieldSelector=spec.nodeName%3Dn1&limit=500&continue=1",
  );
});

test("a list whose continue token expires begins again, and is asked for in one piece at last", async () => {
  await using t = await serve(({ query }, answer) => {
    if (query.has("continue")) answer.status(410, "Expired");
    else if (query.has("limit")) {
      answer.json(200, { metadata: { continue: "t" }, items: [{ metadata: { name: "stale" } }] });
    } else answer.json(200, { metadata: { resourceVersion: "9" }, items: null });
  });
  expect(await t.client.list(pods, {})).toEqual({ items: [], resourceVersion: "9" });
  expect(t.server.received.map(({ query }) => query.toString())).toEqual([
    ...Array.from({ length: 3 }, () => ["limit=500", "limit=500&continue=t"]).flat(),
    "",
  ]);
});

test.each([
  [404, "NotFound", "NotFound"],
  [409, "AlreadyExists", "AlreadyExists"],
  [409, "Conflict", "Conflict"],
  [401, "Unauthorized", "Unauthorized"],
  [422, "Invalid", "Invalid"],
] as const)("a %d %s rejects with code %s and the server's words", async (status, reason, code) => {
  await using t = await serve((_, answer) => answer.status(status, reason, "the server's words"));
  await expect(t.client.get(pods, { namespace: "ns", name: "a" })).rejects.toMatchObject({
    code,
    message: "the server's words",
  });
  expect(t.server.received).toHaveLength(1);
});

test.each([429, 503, 500])("a %d with Retry-After is waited out, also for a POST", async (status) => {
  let left = 2;
  await using t = await serve((_, answer) => {
    if (left-- > 0) answer.status(status, "TooManyRequests", "later", { "retry-after": "0" });
    else answer.json(201, pod("a", "1"));
  });
  await t.client.create(pods, pod("a", "1"));
  expect(t.server.received).toHaveLength(3);
});

test("a Retry-After beyond the call's timeout is not waited for", async () => {
  await using t = await serve((_, answer) => answer.status(429, "TooManyRequests", "later", { "retry-after": "60" }));
  const startMs = performance.now();
  await expect(t.client.get(nodes, { name: "n1" })).rejects.toMatchObject({
    code: "TooManyRequests",
    message: "later",
  });
  expect(performance.now() - startMs).toBeLessThan(1_000);
});

test("a burst of 500 without Retry-After is the caller's to pace", async () => {
  await using t = await serve((_, answer) => answer.status(500, "InternalError", "oops"));
  await expect(t.client.get(nodes, { name: "n1" })).rejects.toMatchObject({ code: "Internal", message: "oops" });
  expect(t.server.received).toHaveLength(1);
});

test("a GET whose connection breaks is asked again a few times, a POST is not", async () => {
  await using t = await serve((_, answer) => answer.cut());
  await expect(t.client.get(nodes, { name: "n1" })).rejects.toMatchObject({ code: "Unavailable" });
  expect(t.server.received).toHaveLength(1 + connectionRetriesMax);
  await expect(t.client.create(pods, pod("a", "1"))).rejects.toMatchObject({ code: "Unavailable" });
  expect(t.server.received).toHaveLength(2 + connectionRetriesMax);
});

test("what the server refused to look at is sent again, also a POST", async () => {
  let left = 2;
  await using t = await serve((_, answer) => {
    if (left-- > 0) answer.refuse();
    else answer.json(201, pod("a", "1"));
  });
  await t.client.create(pods, pod("a", "1"));
  expect(t.server.received).toHaveLength(3);
});

test("a call ends at its timeout, and when it is canceled", async () => {
  await using t = await serve(() => {}, { timeoutMs: 50 });
  await expect(t.client.get(nodes, { name: "n1" })).rejects.toMatchObject({
    code: "DeadlineExceeded",
    message: "GET /api/v1/nodes/n1: no answer within 50 ms",
  });
  const stop = new AbortController();
  const call = expect(
    t.client.get(nodes, { name: "n1" }, { signal: stop.signal, timeoutMs: 5_000 }),
  ).rejects.toMatchObject({
    code: "Canceled",
  });
  stop.abort();
  await call;
  await expect(t.client.get(nodes, { name: "n1" }, { signal: stop.signal })).rejects.toMatchObject({
    code: "Canceled",
  });
});

test("an answer that is no object is an error that does not quote it", async () => {
  await using t = await serve(({ path }, answer) => {
    if (path.endsWith("cut")) answer.write('{"data":{"password":"c2VjcmV0');
    else answer.json(200, path.endsWith("array") ? ["c2VjcmV0"] : { kind: "Secret" });
    answer.end();
  });
  for (const name of ["cut", "array", "bare"]) {
    const call = t.client.get(secrets, { namespace: "ns", name });
    await expect(call).rejects.toMatchObject({ code: "Internal", message: expect.not.stringContaining("c2VjcmV0") });
  }
});

test("a body that no API server takes is not sent", async () => {
  await using t = await serve((_, answer) => answer.json(200, pod("a", "1")));
  const event = { metadata: { name: "e", namespace: "ns" }, involvedObject: {}, message: "x".repeat(requestBytesMax) };
  await expect(t.client.create(events, event)).rejects.toMatchObject({ code: "Invalid", message: /larger than/ });
  expect(t.server.received).toHaveLength(0);
});

test("a server that is not there is Unavailable, and says where it was looked for", async () => {
  const server = await FakeHttp.start(() => {});
  const { url } = server;
  await server[Symbol.asyncDispose]();
  await using client = connectTo(url);
  await expect(client.get(nodes, { name: "n1" })).rejects.toMatchObject({
    code: "Unavailable",
    message: expect.stringMatching(/^https:\/\/127\.0\.0\.1:\d+: connect: .*ECONNREFUSED/),
  });
});

test("the rate limit holds for calls", async () => {
  await using server = await FakeHttp.start((_, answer) => answer.json(200, pod("a", "1")));
  const deps = { clock: systemClock, log: silentLogger };
  const access = createAccess(specFor(server.url), deps);
  await using client = createApiClient({ ...deps, access, userAgent: "t", qps: 1, burst: 2, timeoutMs: 100 });
  const calls = await Promise.allSettled([1, 2, 3].map(() => client.get(nodes, { name: "n1" })));
  expect(calls.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled", "rejected"]);
  expect(server.received).toHaveLength(2);
});
