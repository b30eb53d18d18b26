import { describe, expect, test } from "vitest";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { StepError } from "../../../agent/pods/executor.ts";
import { instrumentExecutor } from "../../../agent/pods/instrumented-executor.ts";
import { createPodMetrics, newlyExited } from "../../../agent/pods/metrics.ts";
import type { WorkerView } from "../../../agent/pods/metrics-gauges.ts";
import type { PodAction } from "../../../agent/pods/plan.ts";
import type { PodSnapshot } from "../../../agent/runtime/port.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";
import { containerOf, podOf, sandboxOf } from "./support.ts";

const snapshot = (changes: Partial<PodSnapshot> = {}): PodSnapshot => ({
  podUID: "u1",
  observedAtMs: 0,
  sandboxes: [],
  containers: [],
  ...changes,
});

function setUp() {
  const clock = new FakeClock();
  const registry = new MetricsRegistry();
  const metrics = createPodMetrics(registry, clock);
  return { clock, registry, metrics, shown: () => metricsText(registry) };
}

describe("steps are counted as the reference counts syncs", () => {
  const start: PodAction = { kind: "StartContainer", container: "app", sandboxID: "s", createdID: undefined };
  const cases: { name: string; action: PodAction; err?: Error; hasContainers?: boolean; want: string[] }[] = [
    {
      name: "a sandbox",
      action: { kind: "CreateSandbox", attempt: 0 },
      want: [
        'kubelet_pod_worker_duration_seconds_sum{operation_type="create"} 2',
        "kubelet_started_pods_total 1",
        "kubelet_started_pods_errors_total 0",
        "kubelet_started_user_namespaced_pods_total 1",
      ],
    },
    {
      name: "a sandbox that cannot be made",
      action: { kind: "CreateSandbox", attempt: 0 },
      err: new StepError("ContainerCreating", "no network"),
      want: [
        "kubelet_started_pods_total 1",
        "kubelet_started_pods_errors_total 1",
        "kubelet_started_user_namespaced_pods_errors_total 1",
      ],
    },
    {
      name: "a container",
      action: start,
      want: ['kubelet_started_containers_total{container_type="container"} 1'],
    },
    {
      name: "an init container",
      action: { ...start, container: "init" },
      want: ['kubelet_started_containers_total{container_type="init_container"} 1'],
    },
    {
      name: "a container that does not start",
      action: { ...start, container: "debug" },
      err: new StepError("RunContainerError", "no such file"),
      hasContainers: true,
      want: [
        'kubelet_pod_worker_duration_seconds_sum{operation_type="sync"} 2',
        'kubelet_started_containers_total{container_type="ephemeral_container"} 1',
        'kubelet_started_containers_errors_total{code="RunContainerError",container_type="ephemeral_container"} 1',
      ],
    },
    {
      name: "an image that cannot be had",
      action: { kind: "EnsureImage", container: "app" },
      err: new StepError("ErrImagePull", "denied"),
      want: [
        'kubelet_started_containers_total{container_type="container"} 1',
        'kubelet_started_containers_errors_total{code="ErrImagePull",container_type="container"} 1',
      ],
    },
    {
      name: "a stop",
      action: { kind: "StopSandbox", sandboxID: "s" },
      want: ['kubelet_pod_worker_duration_seconds_sum{operation_type="kill"} 2'],
    },
    {
      name: "the end",
      action: { kind: "CleanUp" },
      err: new Error("busy"),
      want: ['kubelet_pod_worker_duration_seconds_sum{operation_type="terminated"} 2'],
    },
  ];
  for (const { name, action, err, hasContainers = false, want } of cases) {
    test(name, async () => {
      const { clock, metrics, shown } = setUp();
      const pod = podOf({
        initContainers: [{ name: "init" }],
        ephemeralContainers: [{ name: "debug" }],
        hostUsers: false,
      });
      const inner = {
        execute: async () => {
          await clock.advance(2_000);
          if (err !== undefined) throw err;
        },
      };
      const observed = snapshot({ containers: hasContainers ? [containerOf()] : [] });
      const { signal } = new AbortController();
      const context = { pod, observed, podIPs: [], images: new Map(), maskedPaths: [], signal, hookSignal: signal };
      const run = instrumentExecutor(inner, metrics, clock).execute(action, context);
      if (err === undefined) await run;
      else await expect(run).rejects.toBe(err);
      for (const line of want) expect(await shown()).toContain(`\n${line}\n`);
    });
  }

  test("a start that was called off is no attempt", async () => {
    const { clock, metrics, shown } = setUp();
    const inner = { execute: async () => await Promise.reject(new StepError("ContainerCreating", "changed")) };
    const { signal } = new AbortController();
    const context = {
      pod: podOf(),
      observed: snapshot(),
      podIPs: [],
      images: new Map(),
      maskedPaths: [],
      signal,
      hookSignal: signal,
    };
    await expect(instrumentExecutor(inner, metrics, clock).execute(start, context)).rejects.toThrow("changed");
    expect(await shown()).not.toContain("kubelet_started_containers");
  });
});

test("containers that end are counted once, by how", async () => {
  const { metrics, shown } = setUp();
  const pod = podOf({ initContainers: [{ name: "init" }] });
  const killed = { state: "exited", exitCode: 137, reason: "OOMKilled" } as const;
  const before = snapshot({ containers: [containerOf(), containerOf({ name: "init", ...killed })] });
  const now = snapshot({
    containers: [containerOf(killed), containerOf({ name: "init", ...killed }), containerOf({ ...killed, attempt: 1 })],
  });
  metrics.looked(pod, undefined, before);
  metrics.looked(pod, before, now);
  metrics.looked(pod, now, now);
  const labels = 'container_type="container",exit_code="137",reason="OOMKilled"';
  expect(await shown()).toContain(`kubelet_terminated_containers_total{${labels}} 2\n`);
  expect(await shown()).not.toContain("init_container");
  expect(newlyExited(undefined, now)).toEqual([]);
});

test("gauges count the workers of the moment of the scrape", async () => {
  const { metrics, shown } = setUp();
  const exited = containerOf({ id: "x", state: "exited" });
  const isStatic = { "kubernetes.io/config.source": "file" };
  const workers: WorkerView[] = [
    {
      pod: podOf({ ephemeralContainers: [{ name: "debug" }] }),
      isGone: false,
      lifecycle: "sync",
      observed: snapshot({ sandboxes: [sandboxOf()], containers: [containerOf(), exited] }),
    },
    {
      pod: podOf({}, { uid: "u2", annotations: isStatic }),
      hasMirror: true,
      isGone: false,
      lifecycle: "sync",
      observed: snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [containerOf()] }),
    },
    { pod: podOf({}, { uid: "u3" }), isGone: true, lifecycle: "terminating", observed: undefined },
    {
      pod: { ...podOf({}, { uid: "u4" }), status: { phase: "Failed" } },
      isGone: false,
      lifecycle: "terminated",
      observed: undefined,
    },
  ];
  const end = metrics.follow(() => workers);
  const text = await shown();
  for (const line of [
    "kubelet_running_pods 1",
    'kubelet_running_containers{container_state="running"} 2',
    'kubelet_running_containers{container_state="exited"} 1',
    'kubelet_desired_pods{static=""} 2',
    'kubelet_desired_pods{static="true"} 1',
    'kubelet_active_pods{static=""} 1',
    'kubelet_active_pods{static="true"} 1',
    "kubelet_mirror_pods 1",
    "kubelet_managed_ephemeral_containers 1",
    'kubelet_working_pods{config="desired",lifecycle="sync",static=""} 1',
    'kubelet_working_pods{config="desired",lifecycle="sync",static="true"} 1',
    'kubelet_working_pods{config="desired",lifecycle="terminated",static=""} 1',
    'kubelet_working_pods{config="orphan",lifecycle="terminating",static=""} 1',
    'kubelet_working_pods{config="runtime_only",lifecycle="sync",static="unknown"} 0',
  ]) {
    expect(text).toContain(`\n${line}\n`);
  }
  expect(text.match(/\nkubelet_working_pods\{/g)).toHaveLength(13);
  workers.length = 0;
  expect(await shown()).toContain("\nkubelet_running_pods 0\n");
  end();
  expect(await shown()).not.toContain("kubelet_running_containers");
});

test("starts of pods reach their histograms, and the first network pod its gauge", async () => {
  const { clock, metrics, shown } = setUp();
  const creationTimestamp = "2025-12-31T23:59:58Z";
  const startedAt = "2026-01-01T00:00:00Z";
  const arrive = (uid: string, hostNetwork: boolean) => {
    const pod = podOf({ hostNetwork }, { uid, creationTimestamp });
    metrics.seen(pod);
    metrics.stepBegins(uid);
    const container = {
      name: "app",
      state: { running: { startedAt } },
      ready: true,
      restartCount: 0,
      image: "",
      imageID: "",
    };
    const status = { phase: "Running" as const, startTime: startedAt, containerStatuses: [container] };
    metrics.statusWanted(uid, status);
    metrics.seen({ ...pod, status });
  };
  arrive("u1", true);
  expect(await shown()).not.toContain("first_network_pod");
  await clock.advance(1_000);
  arrive("u2", false);
  await clock.advance(1_000);
  arrive("u3", false);
  const text = await shown();
  expect(text).toContain("\nkubelet_first_network_pod_start_sli_duration_seconds 3\n");
  expect(text).toContain("\nkubelet_pod_start_sli_duration_seconds_sum 9\n");
  expect(text).toContain("\nkubelet_pod_start_total_duration_seconds_count 3\n");
  expect(text).toContain("\nkubelet_pod_start_duration_seconds_count 3\n");
  expect(text).toContain("\nkubelet_pod_worker_start_duration_seconds_count 3\n");
  expect(text).toContain('\nkubelet_containers_per_pod_count_bucket{le="1"} 3\n');
});

test("rejections are counted by the reasons that have a name of their own", async () => {
  const { metrics, shown } = setUp();
  for (const reason of ["OutOfcpu", "OutOfexample.com/gpu", "OutOfhugepages-2Mi", "NodeAffinity", "NodePorts"]) {
    metrics.rejected(reason);
  }
  const lines = (await shown()).split("\n").filter((line) => line.startsWith("kubelet_admission_rejections_total"));
  expect(lines.toSorted()).toEqual([
    'kubelet_admission_rejections_total{reason="Other"} 2',
    'kubelet_admission_rejections_total{reason="OutOfExtendedResources"} 2',
    'kubelet_admission_rejections_total{reason="OutOfcpu"} 1',
  ]);
});
