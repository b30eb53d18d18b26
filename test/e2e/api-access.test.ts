import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { askFromNode } from "../support/cluster/ask.ts";
import type { KeyPair } from "../support/apiserver/pki.ts";
import { isReady } from "./support/cluster.ts";
import { type Answer, type Credentials, type Direct, openDirect } from "./support/direct.ts";
import { type BreakableCluster, openBreakableCluster } from "./support/local.ts";
import { sleeperOf } from "./support/pods.ts";

// Paths of every kind of route. What a pod's path names need not be there: who may not ask does not learn that.
const guarded = [
  "/pods",
  "/runningpods/",
  "/healthz",
  "/healthz/ping",
  "/configz",
  "/metrics",
  "/metrics/cadvisor",
  "/metrics/resource",
  "/metrics/probes",
  "/metrics/slis",
  "/stats/summary",
  "/logs/",
  "/logs/syslog",
  "/containerLogs/ns/pod/main",
  "/exec/ns/pod/main?command=id&output=1",
  "/attach/ns/pod/main?output=1",
  "/portForward/ns/pod",
  "/run/ns/pod/main?cmd=id",
  "/checkpoint/ns/pod/main",
  "/debug/pprof/",
  "/debug/flags/v",
  "/statusz",
  "/flagz",
];

describe.skipIf(!inject("isLocal"))("the node's API, closed by default", () => {
  let own: BreakableCluster;
  let direct: Direct;
  let admin: KeyPair;

  beforeAll(async () => {
    own = await openBreakableCluster();
    direct = await openDirect(own.local, own.cluster.client, own.cluster.namespace);
    admin = direct.certificate({ commonName: "admin", organizations: ["system:masters"], usage: "client" });
    await own.cluster.createPod(sleeperOf("secret"));
    await own.cluster.waitForPod("secret", "ready", isReady);
  });
  afterAll(() => own?.[Symbol.asyncDispose]());

  const isRefusal = ({ status, text }: Answer) => status === 401 && text.trim() === "Unauthorized";

  test("lets a client certificate of its own authority in", async () => {
    expect(await direct.ask("/healthz", { certificate: admin })).toMatchObject({ status: 200, text: "ok" });
  });

  const strangers: { who: string; credentials: () => Credentials }[] = [
    { who: "nobody", credentials: () => ({}) },
    {
      who: "a certificate of another authority of the same name",
      credentials: () => ({
        certificate: direct.certificate(
          { commonName: "admin", organizations: ["system:masters"], usage: "client" },
          { isForged: true },
        ),
      }),
    },
    {
      who: "a certificate that has expired",
      credentials: () => ({
        certificate: direct.certificate({
          commonName: "admin",
          organizations: ["system:masters"],
          usage: "client",
          lifetimeMs: -60_000,
        }),
      }),
    },
    {
      who: "a server's certificate",
      credentials: () => ({
        certificate: direct.certificate({
          commonName: "admin",
          organizations: ["system:masters"],
          usage: "server",
          names: ["admin"],
        }),
      }),
    },
    { who: "a token that nobody issued", credentials: () => ({ token: randomBytes(20).toString("hex") }) },
    { who: "a token that is no token", credentials: () => ({ token: "a.b.c" }) },
  ];
  test.each(strangers)("refuses $who everywhere", async ({ credentials }) => {
    const shown = credentials();
    for (const target of guarded) {
      for (const method of ["GET", "POST"]) {
        expect({ target, method, isRefused: isRefusal(await direct.ask(target, { ...shown, method })) }).toEqual({
          target,
          method,
          isRefused: true,
        });
      }
    }
  });

  test("says 404 for what it does not have, whoever asks", async () => {
    for (const target of ["/", "/spec/", "/livez", "/api/v1/pods", "/metricsx", "/podsx"]) {
      expect(await direct.ask(target)).toMatchObject({ status: 404, text: expect.stringContaining("404") as string });
    }
  });

  test("a wrong token does not hide a good certificate", async () => {
    expect(await direct.ask("/pods", { certificate: admin, token: "wrong" })).toMatchObject({ status: 200 });
  });

  test("tells a user without rights what he may not", async () => {
    const token = await direct.token("plain");
    const user = `system:serviceaccount:${own.cluster.namespace}:plain`;
    const forbidden = (verb: string, subresources: string) =>
      `Forbidden (user=${user}, verb=${verb}, resource=nodes, subresource(s)=[${subresources}])`;
    const cases: [string, string, string, string][] = [
      ["GET", "/pods", "get", "pods proxy"],
      ["GET", "/runningpods/", "get", "pods proxy"],
      ["GET", "/healthz", "get", "healthz proxy"],
      ["GET", "/configz", "get", "configz proxy"],
      ["GET", "/stats/summary", "get", "stats"],
      ["GET", "/metrics", "get", "metrics"],
      ["GET", "/metrics/cadvisor", "get", "metrics"],
      ["GET", "/logs/", "get", "log"],
      ["POST", "/checkpoint/ns/pod/main", "create", "checkpoint"],
      ["GET", "/statusz", "get", "statusz"],
      ["GET", "/flagz", "get", "configz"],
      ["GET", "/containerLogs/ns/pod/main", "get", "proxy"],
      ["POST", "/exec/ns/pod/main", "create", "proxy"],
      ["POST", "/run/ns/pod/main", "create", "proxy"],
      ["PUT", "/debug/flags/v", "update", "proxy"],
    ];
    for (const [method, target, verb, subresources] of cases) {
      const { status, text } = await direct.ask(target, { token, method });
      expect([target, status, text.trim()]).toEqual([target, 403, forbidden(verb, subresources)]);
    }
  });

  const grants: { right: string; open: string[]; closed: string[] }[] = [
    {
      right: "may-get-nodes-metrics",
      open: ["/metrics", "/metrics/cadvisor", "/metrics/resource"],
      closed: ["/pods", "/stats/summary", "/logs/"],
    },
    { right: "may-get-nodes-stats", open: ["/stats/summary"], closed: ["/metrics", "/pods", "/healthz"] },
    { right: "may-get-nodes-pods", open: ["/pods", "/runningpods/"], closed: ["/configz", "/healthz", "/logs/"] },
    { right: "may-get-nodes-healthz", open: ["/healthz", "/healthz/ping"], closed: ["/configz", "/pods"] },
    { right: "may-get-nodes-configz", open: ["/configz", "/flagz"], closed: ["/pods", "/statusz"] },
    { right: "may-get-nodes-log", open: ["/logs/"], closed: ["/containerLogs/ns/pod/main", "/pods"] },
    {
      right: "may-get-nodes-proxy",
      open: ["/pods", "/configz", "/healthz", "/debug/pprof/"],
      closed: ["/metrics", "/stats/summary", "/logs/"],
    },
  ];
  test.each(grants)("gives a token with the right $right that and no more", async ({ right, open, closed }) => {
    const token = await direct.token(right);
    for (const target of open) expect([target, (await direct.ask(target, { token })).status]).toEqual([target, 200]);
    for (const target of closed) {
      expect([target, (await direct.ask(target, { token })).status]).toEqual([target, 403]);
    }
    // The right is to get; to create is another.
    for (const target of open) {
      expect([target, (await direct.ask(target, { token, method: "POST" })).status]).toEqual([target, 403]);
    }
  });

  test("a token that may only do something else runs no command", async () => {
    const token = await direct.token("may-create-nodes-metrics");
    const { namespace } = own.cluster;
    const answer = await direct.ask(`/run/${namespace}/secret/main?cmd=id`, { token, method: "POST" });
    expect(answer.status).toBe(403);
    expect(answer.text).not.toContain("uid=");
  });

  test("healthz on the node itself asks for nothing, and shows nothing else", async () => {
    expect(await askFromNode(own.local.node, "http://127.0.0.1:10248/healthz")).toBe("ok");
    expect(await askFromNode(own.local.node, "http://127.0.0.1:10248/pods")).toContain("404");
    await expect(askFromNode(own.local.node, "http://127.0.0.1:10255/pods")).rejects.toThrow();
  });

  test("while the API server answers no reviews, only who was known before gets in", async () => {
    const known = await direct.token("may-get-nodes-statusz");
    expect((await direct.ask("/statusz", { token: known })).status).toBe(200);
    const other = direct.certificate({ commonName: "other", usage: "client" });
    const unknown = await direct.token("later");
    const action = { kind: "respond", code: 503 };
    await own.fault({ inject: { match: { path: "tokenreviews|subjectaccessreviews" }, action } });
    try {
      expect((await direct.ask("/statusz", { token: known })).status).toBe(200);
      expect((await direct.ask("/statusz", { token: unknown })).status).toBe(401);
      const answer = await direct.ask("/statusz", { certificate: other });
      expect([answer.status, answer.text.trim()]).toEqual([
        500,
        "Authorization error (user=other, verb=get, resource=nodes, subresource=statusz)",
      ]);
    } finally {
      await own.fault({ clear: true });
    }
    expect((await direct.ask("/statusz", { token: unknown })).status).toBe(403);
  });
});

describe.skipIf(!inject("isLocal"))("the node's API, opened by its configuration", () => {
  let own: BreakableCluster;
  let direct: Direct;

  beforeAll(async () => {
    own = await openBreakableCluster({
      readOnlyPort: 10_255,
      authentication: { anonymous: { enabled: true } },
      authorization: { mode: "AlwaysAllow" },
    });
    direct = await openDirect(own.local, own.cluster.client, own.cluster.namespace);
    await own.cluster.createPod(sleeperOf("open"));
    await own.cluster.waitForPod("open", "ready", isReady);
  });
  afterAll(() => own?.[Symbol.asyncDispose]());

  test("anonymous and AlwaysAllow: everybody, but not with wrong credentials", async () => {
    expect(await direct.ask("/healthz")).toMatchObject({ status: 200, text: "ok" });
    expect((await direct.ask("/pods")).text).toContain('"name":"open"');
    expect((await direct.ask("/pods", { token: "wrong" })).status).toBe(401);
    const certificate = direct.certificate({ commonName: "x", usage: "client" }, { isForged: true });
    expect((await direct.ask("/pods", { certificate })).status).toBe(401);
  });

  test("POST /run runs a command", async () => {
    const target = `/run/${own.cluster.namespace}/open/main?cmd=echo%20it%20ran`;
    expect(await direct.ask(target, { method: "POST" })).toMatchObject({ status: 200, text: "it ran\n" });
  });

  test("the read-only port shows what it may, and runs nothing", async () => {
    const ask = async (target: string, method = "GET") =>
      await fetch(`http://${direct.host}:10255${target}`, { method, signal: AbortSignal.timeout(10_000) });
    for (const target of [
      "/healthz",
      "/pods",
      "/stats/summary",
      "/metrics",
      "/metrics/cadvisor",
      "/metrics/resource",
    ]) {
      const answer = await ask(target);
      expect([target, answer.status]).toEqual([target, 200]);
      await answer.text();
    }
    const { namespace } = own.cluster;
    for (const target of [`/run/${namespace}/open/main?cmd=id`, `/exec/${namespace}/open/main?command=id&output=1`]) {
      const answer = await ask(target, "POST");
      expect([target, answer.status, (await answer.text()).trim()]).toEqual([
        target,
        405,
        "Debug endpoints are disabled.",
      ]);
    }
    for (const target of [`/containerLogs/${namespace}/open/main`, "/runningpods/", "/logs/", "/debug/pprof/"]) {
      expect([target, (await ask(target)).status]).toEqual([target, 405]);
    }
    for (const target of ["/configz", "/flagz"]) expect([target, (await ask(target)).status]).toEqual([target, 404]);
  });
});
