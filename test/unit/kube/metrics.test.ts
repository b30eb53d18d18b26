import { generateKeyPairSync } from "node:crypto";
import { expect, test } from "vitest";
import { createAccess } from "../../../agent/kube/access.ts";
import { buildCertificate } from "../../../agent/kube/certificates/x509.ts";
import { createApiClient } from "../../../agent/kube/client.ts";
import { type ExecCredential, runExecPlugin } from "../../../agent/kube/exec-credential.ts";
import { createRestClientMetrics } from "../../../agent/kube/metrics.ts";
import { nodes, pods } from "../../../agent/kube/resources.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { FakeHttp, type Handler } from "../../support/fake-http.ts";
import { FakeClock } from "./fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";
import { pod, specFor } from "./support.ts";

async function serve(handler: Handler) {
  const stack = new AsyncDisposableStack();
  const server = stack.use(await FakeHttp.start(handler));
  const registry = new MetricsRegistry();
  const base = { clock: systemClock, log: silentLogger, userAgent: "kubelet/test" };
  const access = createAccess(specFor(server.url), base);
  const metrics = createRestClientMetrics(registry, systemClock);
  const client = stack.use(createApiClient({ ...base, access, qps: 100, burst: 100, timeoutMs: 5_000, metrics }));
  const host = new URL(server.url).host;
  return {
    client,
    metrics,
    host,
    shown: () => metricsText(registry),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
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

test("connections are counted while they are open, and clients by whether they share some", async () => {
  await using t = await serve((_, answer) => answer.json(200, pod("a", "1")));
  const options = { clock: systemClock, log: silentLogger, userAgent: "kubelet/test", qps: -1, burst: 0 };
  createApiClient({ ...options, transport: t.client.transport, metrics: t.metrics });
  const shown = await t.shown();
  expect(shown).toContain("rest_client_transport_cache_entries 1\n");
  expect(shown).toContain('rest_client_transport_create_calls_total{result="miss"} 1\n');
  expect(shown).toContain('rest_client_transport_create_calls_total{result="hit"} 1\n');
  await t.client[Symbol.asyncDispose]();
  await t.client[Symbol.asyncDispose]();
  expect(await t.shown()).toContain("rest_client_transport_cache_entries 0\n");
});

test("runs of exec plugins are counted by how they ended, also those whose answer is of no use", async () => {
  const registry = new MetricsRegistry();
  const { called } = createRestClientMetrics(registry, systemClock).execPlugins;
  const run = async (...command: string[]) => {
    const [file = "", ...args] = command;
    const plugin = { apiVersion: "client.authentication.k8s.io/v1", command: file, args, env: [] };
    await runExecPlugin(plugin, called).catch(() => {});
  };
  await run("/bin/true");
  await run("/bin/sh", "-c", "exit 3");
  await run("/bin/sh", "-c", "kill -9 $$");
  await run("/nowhere/plugin");
  const shown = await metricsText(registry);
  for (const labels of [
    'call_status="no_error",code="0"',
    'call_status="plugin_execution_error",code="3"',
    'call_status="plugin_execution_error",code="-1"',
    'call_status="plugin_not_found_error",code="1"',
  ]) {
    expect(shown).toContain(`rest_client_exec_plugin_call_total{${labels}} 1\n`);
  }
});

test("an exec plugin's certificate tells how long it is good, and its age when another takes its place", async () => {
  const clock = new FakeClock();
  const registry = new MetricsRegistry();
  const { execPlugins } = createRestClientMetrics(registry, clock);
  expect(await metricsText(registry)).toContain("rest_client_exec_plugin_ttl_seconds +Inf\n");
  const issue = (serial: string) => {
    const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const certificate = buildCertificate({
      template: { commonName: serial, organizations: [], dnsNames: [], ips: [] },
      publicKey,
      issuer: { name: { commonName: "ca", organizations: [] }, key: privateKey },
      isAuthority: false,
      notBeforeMs: clock.now(),
      notAfterMs: clock.now() + 3_600_000,
    });
    const key = privateKey.export({ type: "pkcs8", format: "pem" });
    return { certificate: Buffer.from(certificate), key: Buffer.from(key), expiresAtMs: clock.now() + 1_200_000 };
  };
  let answer: ExecCredential = issue("first");
  const exec = async () => await Promise.resolve(answer);
  const access = createAccess(specFor("https://127.0.0.1:1", { exec }), { clock, log: silentLogger, execPlugins });
  await access.credentials();
  await clock.advance(600_000);
  expect(ttlIn(await metricsText(registry))).toBeCloseTo(3_000, -1);
  await clock.advance(600_000);
  await access.credentials(); // the same certificate again: nothing was rotated
  expect(await metricsText(registry)).toContain("rest_client_exec_plugin_certificate_rotation_age_count 0\n");
  answer = issue("second");
  access.invalidate();
  await access.credentials();
  const shown = await metricsText(registry);
  expect(shown).toContain('rest_client_exec_plugin_certificate_rotation_age_bucket{le="600"} 0\n');
  expect(shown).toContain('rest_client_exec_plugin_certificate_rotation_age_bucket{le="1800"} 1\n');
  expect(ttlIn(shown)).toBeCloseTo(3_600, -1);
  answer = { token: "t" };
  access.invalidate();
  await access.credentials();
  expect(await metricsText(registry)).toContain("rest_client_exec_plugin_ttl_seconds +Inf\n");
});

function ttlIn(shown: string): number {
  return Number(/\nrest_client_exec_plugin_ttl_seconds (\S+)/.exec(shown)?.[1]);
}
