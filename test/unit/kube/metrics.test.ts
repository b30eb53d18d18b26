import { expect, test } from "vitest";
import { createAccess } from "../../../agent/kube/access.ts";
import { createApiClient } from "../../../agent/kube/client.ts";
import { createRestClientMetrics } from "../../../agent/kube/metrics.ts";
import { nodes, pods } from "../../../agent/kube/resources.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { FakeHttp, type Handler } from "../../support/fake-http.ts";
import { metricsText } from "../lib/metrics-support.ts";
import { pod, specFor } from "./support.ts";

async function serve(handler: Handler) {
  const stack = new AsyncDisposableStack();
  const server = stack.use(await FakeHttp.start(handler));
  const registry = new MetricsRegistry();
  const base = { clock: systemClock, log: silentLogger, userAgent: "kubelet/test" };
  const access = createAccess(specFor(server.url), base);
  const metrics = createRestClientMetrics(registry);
  const client = stack.use(createApiClient({ ...base, access, qps: 100, burst: 100, timeoutMs: 5_000, metrics }));
  const host = new URL(server.url).host;
  return { client, host, shown: () => metricsText(registry), [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

test("calls are counted by code, method and host, with their time and sizes", async () => {
  await using t = await serve(({ method }, answer) =>
    method === "GET" ? answer.status(404, "NotFound") : answer.json(201, pod("a", "1")),
  );
  await t.client.create(pods, pod("a", "1"));
  await expect(t.client.get(nodes, { name: "n1" })).rejects.toMatchObject({ code: "NotFound" });
  const shown = await t.shown();
  expect(shown).toContain(`rest_client_requests_total{code="201",host="${t.host}",method="POST"} 1\n`);
  expect(shown).toContain(`rest_client_requests_total{code="404",host="${t.host}",method="GET"} 1\n`);
  const post = `{host="${t.host}",verb="POST"}`;
  expect(shown).toContain(`rest_client_request_duration_seconds_count${post} 1\n`);
  expect(shown).toContain(`rest_client_rate_limiter_duration_seconds_count${post} 1\n`);
  const sent = JSON.stringify({ apiVersion: "v1", kind: "Pod", ...pod("a", "1") }).length;
  expect(shown).toContain(`rest_client_request_size_bytes_sum${post} ${sent}\n`);
  expect(shown).toContain(`rest_client_response_size_bytes_sum${post} ${JSON.stringify(pod("a", "1")).length}\n`);
});

test("a try after another is counted with what the one before came to", async () => {
  let left = 2;
  await using t = await serve((_, answer) => {
    if (left-- > 0) answer.status(429, "TooManyRequests", "later", { "retry-after": "0" });
    else answer.json(200, pod("a", "1"));
  });
  await t.client.get(pods, { namespace: "ns", name: "a" });
  const shown = await t.shown();
  expect(shown).toContain(`rest_client_request_retries_total{code="429",host="${t.host}",verb="GET"} 2\n`);
  expect(shown).toContain(`rest_client_requests_total{code="429",host="${t.host}",method="GET"} 2\n`);
});

test("a request without an answer has the code that client-go gives it", async () => {
  await using t = await serve((_, answer) => answer.cut());
  await expect(t.client.create(pods, pod("a", "1"))).rejects.toMatchObject({ code: "Unavailable" });
  expect(await t.shown()).toContain(`rest_client_requests_total{code="<error>",host="${t.host}",method="POST"} 1\n`);
});

test("a watch is counted, but its time is not that of an answer", async () => {
  await using t = await serve((_, answer) => {
    answer.event("ADDED", pod("a", "1"));
    answer.end();
  });
  const signal = AbortSignal.timeout(4_000);
  const response = await t.client.watch(pods, { timeoutSeconds: 60 }, signal);
  const chunks: Buffer[] = [];
  for await (const chunk of response.body) chunks.push(chunk);
  expect(Buffer.concat(chunks).toString()).toContain("ADDED");
  const shown = await t.shown();
  expect(shown).toContain(`rest_client_requests_total{code="200",host="${t.host}",method="GET"} 1\n`);
  expect(shown).not.toContain("rest_client_request_duration_seconds");
  expect(shown).not.toContain("rest_client_response_size_bytes");
});
