import { IncomingMessage } from "node:http";
import { Socket } from "node:net";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createAccess } from "../../../../agent/kube/access.ts";
import { createApiClient, type KubeClient } from "../../../../agent/kube/client.ts";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { type Authenticator, createAuthenticator } from "../../../../agent/server/auth/authenticator.ts";
import { type Authorizer, createAuthorizer } from "../../../../agent/server/auth/authorizer.ts";
import type { AccessAttributes } from "../../../support/apiserver/types.ts";
import { startTestApiServer, type TestApiServer } from "../../../support/apiserver/server.ts";
import { valueOf } from "./metrics.ts";

// Tokens and access through the API client against the test API server's reviews.

let stack: AsyncDisposableStack;
let server: TestApiServer;
let client: KubeClient;
let metrics: MetricsRegistry;
let authenticator: Authenticator;
let authorizer: Authorizer;

const deps = { clock: systemClock, log: silentLogger };

beforeEach(async () => {
  stack = new AsyncDisposableStack();
  const isAllowed = ({ user, resource, subresource, name, verb }: AccessAttributes) =>
    resource !== "nodes" ||
    user.name !== "scraper" ||
    (name === "n1" && verb === "get" && ["metrics", "proxy"].includes(subresource));
  const tokens = new Map([["s3cret", { name: "scraper", uid: "42", groups: ["scrapers"] }]]);
  server = stack.use(await startTestApiServer({ tokens, authorizer: isAllowed }));
  const admin = server.issueCertificate({
    commonName: "system:node:n1",
    organizations: ["system:nodes", "system:masters"],
    usage: "client",
  });
  const access = createAccess(
    {
      server: server.url,
      origin: "test",
      insecureSkipVerify: false,
      impersonate: {},
      ca: { data: Buffer.from(server.caCertificate) },
      cert: { data: Buffer.from(admin.certificate) },
      key: { data: Buffer.from(admin.key) },
    },
    deps,
  );
  client = stack.use(createApiClient({ ...deps, access, userAgent: "kubelet/test", qps: -1, burst: 0 }));
  metrics = new MetricsRegistry();
  const stop = new AbortController();
  stack.defer(() => stop.abort());
  const more = { clock: { ...systemClock, sleep: async () => {} }, log: silentLogger, metrics, stop: stop.signal };
  authenticator = createAuthenticator({
    ...more,
    clientCA: undefined,
    readsCertificateUID: true,
    tokens: { api: client, cacheTTLMs: 120_000 },
    allowsAnonymous: false,
  });
  authorizer = createAuthorizer({
    ...more,
    mode: "Webhook",
    nodeName: "n1",
    api: client,
    authorizedTTLMs: 300_000,
    unauthorizedTTLMs: 30_000,
  });
});
afterEach(async () => stack.disposeAsync());

async function userOf(token: string) {
  const request = new IncomingMessage(new Socket());
  request.rawHeaders.push("Authorization", `Bearer ${token}`);
  return (await authenticator.authenticate(request, request.socket))?.user;
}

test("a static token is a user, once asked and then known", async () => {
  const want = { username: "scraper", uid: "42", groups: ["scrapers", "system:authenticated"], extra: {} };
  expect(await userOf("s3cret")).toEqual(want);
  expect(await userOf("s3cret")).toEqual(want);
  expect(server.requests.count({ resource: "tokenreviews" })).toBe(1);
  expect(await valueOf(metrics, "apiserver_delegated_authn_request_total", { code: "201" })).toBe(1);
  expect(await userOf("other")).toBeUndefined();
  expect(await userOf('"}{\\u0000')).toBeUndefined();
});

test("what the API server allows is allowed, and nothing else", async () => {
  const user = await userOf("s3cret");
  if (user === undefined) throw new Error("no user");
  expect(await authorizer.authorize(user, "get", ["metrics"])).toBe("allowed");
  expect(await authorizer.authorize(user, "get", ["pods", "proxy"])).toBe("allowed");
  expect(await authorizer.authorize(user, "create", ["proxy"])).toBe("denied");
  expect(await authorizer.authorize(user, "get", ["stats"])).toBe("denied");
  const asked = server.requests.count({ resource: "subjectaccessreviews" });
  expect(await authorizer.authorize(user, "get", ["stats"])).toBe("denied");
  expect(server.requests.count({ resource: "subjectaccessreviews" })).toBe(asked);
});

test("an API server in trouble is asked again, one that is away is not waited for", async () => {
  server.faults.inject({ resource: "subjectaccessreviews" }, { kind: "respond", code: 500 }, 1);
  const user = { username: "scraper", uid: "", groups: [], extra: {} };
  expect(await authorizer.authorize(user, "get", ["metrics"])).toBe("allowed");
  await server.pause();
  await expect(authorizer.authorize(user, "get", ["stats"])).rejects.toMatchObject({ subresource: "stats" });
  await server.resume();
  expect(await authorizer.authorize(user, "get", ["stats"])).toBe("denied");
});
