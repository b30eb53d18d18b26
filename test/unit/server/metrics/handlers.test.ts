import { createServer, type IncomingMessage, request, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { createGunzip } from "node:zlib";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type MetricFamily, MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { createMetricsHandlers, type MetricsHandlers } from "../../../../agent/server/metrics/handlers.ts";
import { HealthSLIs } from "../../../../agent/server/metrics/slis.ts";
import { HttpError } from "../../../../agent/server/port.ts";

const processStartMs = 1_700_000_000_250;

let registry: MetricsRegistry;
let slis: HealthSLIs;
let cadvisor: () => Iterable<MetricFamily> | Promise<Iterable<MetricFamily>>;
let server: Server;
let failures: unknown[];

beforeEach(async () => {
  registry = new MetricsRegistry();
  slis = new HealthSLIs();
  cadvisor = () => [];
  failures = [];
  const handlers = createMetricsHandlers({
    registry,
    probes: () => [{ name: "prober_probe_total", help: "P.", type: "counter", samples: [{ labels: {}, value: 1 }] }],
    resource: () => [{ name: "node_cpu", help: "R.", type: "counter", samples: [{ labels: {}, value: 2 }] }],
    cadvisor: () => cadvisor(),
    slis,
    processStartMs,
  });
  server = createServer((incoming, response) => {
    const name = (incoming.url ?? "/").slice(1) as keyof MetricsHandlers;
    const gone = new AbortController();
    response.on("close", () => gone.abort());
    handlers[name]({
      request: incoming,
      response,
      params: {},
      query: new URLSearchParams(),
      signal: gone.signal,
    }).catch((err: unknown) => {
      failures.push(err);
      if (response.headersSent) response.destroy();
      else response.writeHead(err instanceof HttpError ? err.status : 500).end(String(err));
    });
  });
  await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
});

afterEach(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => void server.close(resolve));
});

async function open(path: string, headers = {}, method = "GET"): Promise<IncomingMessage> {
  const { port } = server.address() as AddressInfo;
  return await new Promise((resolve, reject) => {
    const sent = request({ host: "127.0.0.1", port, path, method, headers }, resolve);
    sent.on("error", reject);
    sent.end();
  });
}

function manySeries(count: number): MetricFamily {
  const samples = Array.from({ length: count }, (_, i) => ({
    labels: { id: `/kubepods/burstable/pod${i}`, pod: `pod-${i}`, namespace: "default", container: "app" },
    value: i,
    timestampMs: 1_700_000_000_000,
  }));
  return { name: "container_memory_rss", help: "H.", type: "gauge", samples };
}

test("text with the headers that Prometheus and metrics-server look at", async () => {
  registry.counter("a_total", "A.").inc({}, 3);
  const answer = await open("/metrics");
  expect(answer.statusCode).toBe(200);
  expect(answer.headers["content-type"]).toBe("text/plain; version=0.0.4; charset=utf-8; escaping=underscores");
  expect(answer.headers["process-start-time-unix"]).toBe("1700000000");
  expect(answer.headers["content-encoding"]).toBeUndefined();
  expect(await text(answer)).toBe("# HELP a_total A.\n# TYPE a_total counter\na_total 3\n");
});

test("each endpoint shows its own families", async () => {
  expect(await text(await open("/resource"))).toContain("node_cpu 2\n");
  const probes = await text(await open("/probes"));
  expect(probes).toContain("prober_probe_total 1\n");
  expect(probes).toContain("process_start_time_seconds 1.70000000025e+09\n");
});

test("gzip and protobuf on request", async () => {
  cadvisor = () => [manySeries(5_000)];
  const plain = await text(await open("/cadvisor"));
  const zipped = await open("/cadvisor", { "accept-encoding": "gzip" });
  expect(zipped.headers["content-encoding"]).toBe("gzip");
  expect(await text(zipped.pipe(createGunzip()))).toBe(plain);
  expect(plain.split("\n")).toHaveLength(5_003);
  const accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
  const encoded = await open("/cadvisor", { accept });
  expect(encoded.headers["content-type"]).toContain("encoding=delimited");
  expect((await text(encoded)).includes("container_memory_rss")).toBe(true);
});

test("the event loop goes on while a large exposition is written", async () => {
  cadvisor = () => [manySeries(30_000)];
  let turns = 0;
  let isDone = false;
  const count = () => {
    turns += 1;
    if (!isDone) setImmediate(count);
  };
  count();
  const body = await text(await open("/cadvisor"));
  isDone = true;
  expect(body.split("\n")).toHaveLength(30_003);
  expect(turns).toBeGreaterThan(100);
});

test("a reader that does not read is waited for, without making the text ahead", async () => {
  let made = 0;
  const samples = (function* () {
    for (const sample of manySeries(1).samples) {
      for (made = 0; made < 500_000; made += 1) yield sample;
    }
  })();
  cadvisor = () => [{ name: "g", help: "", type: "gauge", samples }];
  const answer = await open("/cadvisor");
  answer.pause();
  await new Promise((resolve) => void answer.once("readable", resolve));
  let before = -1;
  while (made !== before) {
    before = made;
    for (let i = 0; i < 100; i += 1) await new Promise((resolve) => void setImmediate(resolve));
  }
  expect(made).toBeLessThan(400_000);
  answer.destroy();
});

test("a reader that goes away ends the work quietly", async () => {
  let made = 0;
  let ended = false;
  const [sample = { labels: {}, value: 0 }] = manySeries(1).samples;
  const samples = (function* () {
    try {
      for (;;) {
        made += 1;
        yield sample;
      }
    } finally {
      ended = true;
    }
  })();
  cadvisor = () => [{ name: "g", help: "", type: "gauge", samples }];
  const answer = await open("/cadvisor", { "accept-encoding": "gzip" });
  answer.destroy();
  await expect.poll(() => ended, { interval: 5 }).toBe(true);
  expect(made).toBeGreaterThan(0);
  expect(failures).toEqual([]);
});

test("what a collector cannot read is a 500 that says so", async () => {
  registry.collect("bad", () => {
    throw new Error("cannot read /proc");
  });
  const answer = await open("/metrics");
  expect(answer.statusCode).toBe(500);
  expect(await text(answer)).toContain("An error has occurred while serving metrics:\n\ncannot read /proc");
});

test("a family that fails halfway breaks off the answer, so that nobody takes it for complete", async () => {
  const [sample = { labels: {}, value: 0 }] = manySeries(1).samples;
  const samples = (function* () {
    for (let i = 0; i < 5_000; i += 1) yield sample;
    throw new Error("cgroup went away");
  })();
  cadvisor = () => [{ name: "g", help: "", type: "gauge", samples }];
  await expect(text(await open("/cadvisor"))).rejects.toThrow("aborted");
  expect(String(failures)).toContain("cgroup went away");
});

test("/metrics/slis counts checks, and DELETE starts anew", async () => {
  slis.record("syncloop", true);
  slis.record("syncloop", false);
  slis.record("ping", true);
  const shown = await text(await open("/slis"));
  expect(shown).toContain('kubernetes_healthcheck{name="syncloop",type="healthz"} 0\n');
  expect(shown).toContain('kubernetes_healthchecks_total{name="syncloop",status="error",type="healthz"} 1\n');
  expect(shown).toContain('kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 1\n');
  expect(shown).toContain("process_start_time_seconds");
  expect(await text(await open("/slis", {}, "DELETE"))).toBe("metrics reset\n");
  expect(await text(await open("/slis"))).not.toContain("kubernetes_healthcheck");
});
