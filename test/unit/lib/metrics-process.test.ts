import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { type MetricFamily, MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { parseProcessFigures, registerProcessMetrics } from "../../../agent/lib/metrics-process.ts";

const status = "Name:\tnode\nVmSize:\t  1000 kB\nVmRSS:\t    90 kB\nThreads:\t11\n";
const limits = `Limit                     Soft Limit           Hard Limit           Units
Max open files            20000                40000                files
Max address space         unlimited            unlimited            bytes
`;
const netstat = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 4050181280 7\n";

test("figures of a process are read from /proc's texts", () => {
  expect(parseProcessFigures({ status, limits, netstat })).toEqual({
    residentBytes: 90 * 1024,
    virtualBytes: 1000 * 1024,
    threads: 11,
    openFilesMax: 20000,
    virtualBytesMax: 2 ** 64,
    receivedBytes: 4050181280,
    transmittedBytes: 7,
  });
});

test("what /proc does not say is left out", () => {
  expect(parseProcessFigures({ status: "", limits: "", netstat: "" })).toEqual({});
  expect(
    parseProcessFigures({ status: "VmRSS:\tmany kB\n", limits: "Max open files x", netstat: "IpExt: InOctets\n" }),
  ).toEqual({});
});

test("the process' own metrics have plausible values, and none where there is no /proc", async () => {
  const dir = await mkdtemp(join(tmpdir(), "metrics-process-"));
  try {
    for (const [proc, isThere] of [
      ["/proc", true],
      [dir, false],
    ] as const) {
      const registry = new MetricsRegistry();
      const { close } = registerProcessMetrics(registry, { processStartMs: 1_500, proc });
      try {
        const values = valuesOf(await registry.families());
        expect(values.get("process_start_time_seconds")).toBe(1.5);
        expect(values.get("process_cpu_seconds_total")).toBeGreaterThan(0);
        expect(values.get("go_goroutines")).toBeGreaterThanOrEqual(0);
        expect(values.get("go_memstats_alloc_bytes")).toBeGreaterThan(1e6);
        expect(values.get('nodelet_eventloop_lag_seconds{"quantile":"0.99"}')).toBeGreaterThanOrEqual(0);
        for (const name of ["process_resident_memory_bytes", "process_open_fds", "process_max_fds", "go_threads"]) {
          if (isThere) expect(values.get(name), name).toBeGreaterThan(0);
          else expect(values.has(name), name).toBe(false);
        }
      } finally {
        close();
      }
    }
  } finally {
    await rm(dir, { recursive: true });
  }
});

function valuesOf(families: readonly MetricFamily[]): Map<string, number> {
  return new Map(
    families.flatMap(({ name, samples }) =>
      [...samples].map(({ labels, value }): [string, number] => {
        return [Object.keys(labels).length === 0 ? name : name + JSON.stringify(labels), value];
      }),
    ),
  );
}
