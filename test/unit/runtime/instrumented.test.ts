import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { instrumentPLEG, instrumentRuntime } from "../../../agent/runtime/instrumented.ts";
import { createImageMetrics, createPullRecordMetrics, imageSizeLabel } from "../../../agent/runtime/metrics.ts";
import type { Runtime, RuntimeEvent } from "../../../agent/runtime/port.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";

/** A runtime whose every method takes 20 ms and answers or fails as told; `calls` are the names with arguments. */
function fakeRuntime(clock: FakeClock) {
  const calls: string[] = [];
  const state: { failure: Error | undefined; onEvent: ((event: RuntimeEvent) => void) | undefined } = {
    failure: undefined,
    onEvent: undefined,
  };
  const method =
    (name: string) =>
    async (...args: unknown[]) => {
      calls.push(`${name}(${args.filter((arg) => typeof arg === "string").join(",")})`);
      if (name === "events") state.onEvent = args[0] as (event: RuntimeEvent) => void;
      await clock.advance(20);
      if (state.failure !== undefined) throw state.failure;
      return name;
    };
  const methods = (prefix: string) => new Proxy({}, { get: (_, name) => method(prefix + String(name)) });
  const images = methods("images.");
  const target = methods("");
  const runtime = new Proxy(target, {
    get: (_, name) => (name === "images" ? images : Reflect.get(target, name)),
  }) as Runtime; // answers whatever is asked
  return { runtime, calls, state };
}

type Call = (runtime: Runtime) => Promise<unknown>;
const config = {} as never; // travels through untouched

const operations: Record<string, Call> = {
  version: (r) => r.version(),
  status: (r) => r.status(),
  runtime_config: (r) => r.cgroupDriver(),
  update_runtime_config: (r) => r.updateRuntimeConfig({ podCIDR: "10.0.0.0/24" }),
  run_podsandbox: (r) => r.runPodSandbox(config, "kata"),
  stop_podsandbox: (r) => r.stopPodSandbox("s"),
  remove_podsandbox: (r) => r.removePodSandbox("s"),
  podsandbox_status: (r) => r.podSandboxStatus("s"),
  create_container: (r) => r.createContainer("s", config, config),
  start_container: (r) => r.startContainer("c"),
  stop_container: (r) => r.stopContainer("c", 5),
  remove_container: (r) => r.removeContainer("c"),
  container_status: (r) => r.containerStatus("c"),
  update_container: (r) => r.updateContainerResources("c", {}),
  reopen_container_log: (r) => r.reopenContainerLog("c"),
  exec_sync: (r) => r.execSync("c", ["true"], 1),
  list_container_stats: (r) => r.containerStats(),
  checkpoint_container: (r) => r.checkpointContainer("c", "/x", 0),
  exec: (r) =>
    r.streamingURL({
      kind: "exec",
      containerID: "c",
      command: [],
      tty: false,
      stdin: false,
      stdout: true,
      stderr: true,
    }),
  attach: (r) =>
    r.streamingURL({ kind: "attach", containerID: "c", tty: false, stdin: false, stdout: true, stderr: true }),
  port_forward: (r) => r.streamingURL({ kind: "portforward", sandboxID: "s", ports: [80] }),
  list_images: (r) => r.images.listImages(),
  image_status: (r) => r.images.imageStatus("i"),
  pull_image: (r) => r.images.pullImage("i", { annotations: {} }),
  remove_image: (r) => r.images.removeImage("i"),
  images_in_use: (r) => r.images.imagesInUse(),
  image_fs_info: (r) => r.images.fsInfo(),
};

describe("each call to the runtime is passed on, counted and timed under CRI's name", () => {
  for (const [type, call] of Object.entries(operations)) {
    test(type, async () => {
      const clock = new FakeClock();
      const { runtime, calls, state } = fakeRuntime(clock);
      const registry = new MetricsRegistry();
      const instrumented = instrumentRuntime(runtime, registry, clock);
      const answer = await call(instrumented);
      await call(runtime);
      expect(calls[0]).toBe(calls[1]);
      expect(answer).toBe(calls[0]?.split("(")[0]);
      state.failure = new Error("runtime says no");
      await expect(call(instrumented)).rejects.toBe(state.failure);
      const shown = await metricsText(registry);
      expect(shown).toContain(`kubelet_runtime_operations_total{operation_type="${type}"} 2\n`);
      expect(shown).toContain(`kubelet_runtime_operations_errors_total{operation_type="${type}"} 1\n`);
      expect(shown).toContain(`kubelet_runtime_operations_duration_seconds_sum{operation_type="${type}"} 0.04\n`);
    });
  }
});

test("running a sandbox is counted by its runtime handler, too", async () => {
  const clock = new FakeClock();
  const { runtime, state } = fakeRuntime(clock);
  const registry = new MetricsRegistry();
  const instrumented = instrumentRuntime(runtime, registry, clock);
  await instrumented.runPodSandbox(config, "kata");
  state.failure = new Error("no");
  await expect(instrumented.runPodSandbox(config, "")).rejects.toThrow("no");
  const shown = await metricsText(registry);
  expect(shown).toContain('kubelet_run_podsandbox_duration_seconds_count{runtime_handler="kata"} 1\n');
  expect(shown).toContain('kubelet_run_podsandbox_errors_total{runtime_handler=""} 1\n');
});

test("lists, looks and events say when the runtime was last heard of", async () => {
  const clock = new FakeClock();
  const { runtime, state } = fakeRuntime(clock);
  const registry = new MetricsRegistry();
  const shared = instrumentRuntime(runtime, registry, clock);
  const instrumented = instrumentPLEG(shared, registry, clock);
  const events: RuntimeEvent[] = [];
  await instrumented.events((event) => events.push(event), new AbortController().signal);
  state.onEvent?.({ kind: "unknown", podUID: undefined, containerID: undefined });
  state.onEvent?.({ kind: "exited", podUID: "u", containerID: "c", createdAtMs: clock.now() - 40 });
  expect(events).toHaveLength(2);
  await instrumented.list();
  await clock.advance(1_000);
  await instrumented.list();
  await instrumented.list("u");
  await instrumented.podSnapshot("u");
  const seenAtMs = clock.now();
  await clock.advance(5_000);
  await shared.list(); // for statistics, say
  const shown = await metricsText(registry);
  expect(shown).toContain("kubelet_evented_pleg_connection_success_count 1\n");
  expect(shown).toContain("kubelet_evented_pleg_connection_latency_seconds_sum 0.04\n");
  expect(shown).toContain("kubelet_evented_pleg_connection_latency_seconds_count 1\n");
  expect(shown).toContain("kubelet_pleg_relist_duration_seconds_count 2\n");
  expect(shown).toContain("kubelet_pleg_relist_interval_seconds_sum 1.02\n");
  expect(shown).toContain("kubelet_pleg_pod_relist_duration_seconds_sum 0.02\n");
  expect(Number(/\nkubelet_pleg_last_seen_seconds (\S+)/.exec(shown)?.[1])).toBeCloseTo(seenAtMs / 1_000, 3);
  expect(shown).toContain('kubelet_runtime_operations_total{operation_type="list_containers"} 4\n');
  expect(shown).toContain('kubelet_runtime_operations_total{operation_type="container_status"} 1\n');
});

describe("sizes of images have few names", () => {
  const MB = 1 << 20;
  const cases: [number | undefined, string][] = [
    [undefined, "N/A"],
    [0, "N/A"],
    [-1, "N/A"],
    [1, "0-10MB"],
    [10 * MB, "0-10MB"],
    [10 * MB + 1, "10MB-100MB"],
    [1024 * MB, "500MB-1GB"],
    [60 * 1024 * MB, "40GB-60GB"],
    [101 * 1024 * MB, "GT100GB"],
  ];
  for (const [bytes, want] of cases) test(`${bytes} is ${want}`, () => expect(imageSizeLabel(bytes)).toBe(want));
});

test("pulls are timed by the image's size", async () => {
  const registry = new MetricsRegistry();
  const { pulled } = createImageMetrics(registry);
  pulled(2.5, 5 << 20);
  const shown = await metricsText(registry);
  expect(shown).toContain('kubelet_image_pull_duration_seconds_bucket{image_size_in_bytes="0-10MB",le="5"} 1\n');
  expect(shown).toContain('kubelet_image_pull_duration_seconds_bucket{image_size_in_bytes="0-10MB",le="1"} 0\n');
});

test("records of pulls are counted on disk, unfinished files and directories that are gone left out", async () => {
  const dir = await mkdtemp(join(tmpdir(), "metrics-records-"));
  try {
    const dirs = { intents: join(dir, "pulling"), pulled: join(dir, "pulled") };
    await mkdir(dirs.pulled);
    for (const name of ["a", "b", "c.1234.tmp"]) await writeFile(join(dirs.pulled, name), "");
    const registry = new MetricsRegistry();
    createPullRecordMetrics(registry, dirs);
    const shown = await metricsText(registry);
    expect(shown).toContain("kubelet_imagemanager_ondisk_pulledrecords 2\n");
    expect(shown).not.toContain("kubelet_imagemanager_ondisk_pullintents");
    expect(shown).toContain("kubelet_imagemanager_inmemory_pullintents_usage_percent 0\n");
    expect(shown).toContain("kubelet_imagemanager_inmemory_pulledrecords_usage_percent 0\n");
  } finally {
    await rm(dir, { recursive: true });
  }
});

test("what a runtime cannot run is asked of the runtime itself; one that has nothing to say stays silent", () => {
  const { runtime } = fakeRuntime(new FakeClock());
  const asked = { ...instrumented(runtime), unsupported: () => "no" };
  expect(instrumented(asked).unsupported?.({} as never)).toBe("no");
  const { unsupported: _, ...silent } = asked;
  expect(instrumented(silent).unsupported).toBeUndefined();
});

function instrumented(runtime: Runtime): Runtime {
  return instrumentRuntime(runtime, new MetricsRegistry(), new FakeClock());
}
