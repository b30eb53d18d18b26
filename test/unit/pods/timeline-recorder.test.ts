import { describe, expect, test } from "vitest";
import type { ApiClient, EventRecorder } from "../../../agent/kube/port.ts";
import { pods } from "../../../agent/kube/resources.ts";
import type { Pod, PodStatus } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { type StepContext, StepError } from "../../../agent/pods/executor.ts";
import { createPodMetrics } from "../../../agent/pods/metrics.ts";
import { podReference } from "../../../agent/pods/names.ts";
import type { PodAction } from "../../../agent/pods/plan.ts";
import { TimelineRecorder } from "../../../agent/pods/timeline-recorder.ts";
import type { PodSandboxConfig, Runtime } from "../../../agent/runtime/port.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { JumpyClock } from "./scripted-node.ts";
import { containerOf, exited, podOf, snapshot } from "./support.ts";

const pod = podOf({
  containers: [{ name: "app", image: "image:1", lifecycle: { postStart: { sleep: { seconds: 1 } } } }],
});

function setUp(clock = new FakeClock()) {
  const recorder = new TimelineRecorder(clock);
  const told: string[] = [];
  const events: EventRecorder = recorder.events({ event: (_about, _type, reason) => void told.push(reason) });
  const metrics = recorder.metrics(createPodMetrics(new MetricsRegistry(), clock));
  const lines = () =>
    (recorder.timelines.get("u1")?.entries ?? []).map(({ what, subject, state, tookMs, detail, times }) =>
      [what, subject, state, tookMs === undefined ? "" : `${tookMs}ms`, detail, times === 1 ? "" : `x${times}`]
        .filter((text) => text !== "")
        .join(" "),
    );
  const say = (reason: string, message: string, about = "spec.containers{app}") =>
    events.event(podReference(pod, about), reason.startsWith("Failed") ? "Warning" : "Normal", reason, message);
  /** Runs a step in which `work` happens. */
  const step = async (action: PodAction, work: () => Promise<void>, changes: Partial<StepContext> = {}) => {
    const context = { pod, signal: new AbortController().signal, ...changes } as StepContext; // of which nothing else is read
    await recorder
      .executor({ execute: work })
      .execute(action, context)
      .catch((err: unknown) => {
        if (!(err instanceof StepError) && !(err instanceof AgentError)) throw err;
      });
  };
  metrics.seen(pod);
  return { clock, recorder, metrics, events, told, lines, say, step };
}

const start: PodAction = { kind: "StartContainer", container: "app", sandboxID: "s0", createdID: undefined };
const image: PodAction = { kind: "EnsureImage", container: "app" };

describe("a timeline is written of", () => {
  test("a start: create, start and postStart hook apart", async () => {
    const { clock, lines, say, step } = setUp();
    await step(start, async () => {
      await clock.advance(30);
      say("Created", "Container created");
      await clock.advance(50);
      say("Started", "Container started");
      expect(lines().at(-1)).toBe("postStart app running");
      await clock.advance(1_000);
    });
    expect(lines()).toEqual(["seen done", "create app done 30ms", "start app done 50ms", "postStart app done 1000ms"]);
  });

  test("a start that fails: the part that did", async () => {
    const { lines, say, step } = setUp();
    await step(start, async () => {
      say("Created", "Container created");
      say("Failed", "Error: no such file");
      throw new StepError("RunContainerError", "no such file");
    });
    expect(lines().slice(1)).toEqual(["create app done 0ms", "start app failed 0ms no such file"]);
  });

  test("an image: what is done meanwhile, then what came of it", async () => {
    const { clock, lines, say, step } = setUp();
    await step(image, async () => {
      say("Pulling", 'Pulling image "image:1"');
      expect(lines().at(-1)).toBe('image app running Pulling image "image:1"');
      await clock.advance(700);
      say("Pulled", 'Successfully pulled image "image:1" in 600ms (700ms including waiting). Image size: 4096 bytes.');
    });
    await step(image, async () => say("Pulled", 'Container image "image:1" already present on machine'));
    expect(lines().slice(1)).toEqual([
      "image app done 700ms pulled image:1, 4096 bytes",
      "image app done 0ms image:1 is present",
    ]);
  });

  test("a pull: how far it is, for a container and for the volumes of one, until it ends", async () => {
    const { recorder, lines, say, step } = setUp();
    const progress = { layers: 4, layersDone: 1, downloadedBytes: 5e6, totalBytes: 2e7 };
    await step(image, async () => {
      say("Pulling", 'Pulling image "image:1"');
      recorder.pullProgress(pod, { name: "app", image: "image:1" }, progress);
      recorder.pullProgress(pod, { name: "other", image: "image:1" }, { ...progress, layersDone: 2 });
      expect(lines().at(-1)).toBe(
        'image app running Pulling image "image:1": 1 of 4 layers done, 5.0 of 20.0 MB downloaded',
      );
      say("Pulled", 'Successfully pulled image "image:1" in 6s (6s including waiting). Image size: 4096 bytes.');
    });
    recorder.pullProgress(pod, { name: "app", image: "image:1" }, progress);
    expect(lines().slice(1)).toEqual(["image app done 0ms pulled image:1, 4096 bytes"]);
  });

  test("a pull for a volume: how far it is, for the containers that mount it", async () => {
    const { recorder, lines, step } = setUp();
    const mounts = podOf({
      containers: [
        { name: "app", image: "image:1", volumeMounts: [{ name: "model", mountPath: "/model" }] },
        { name: "other", image: "image:1" },
      ],
      volumes: [{ name: "model", image: { reference: "model:1" } }],
    });
    const progress = { layers: 4, layersDone: 1, downloadedBytes: 0, totalBytes: 0 };
    const during = async (name: string) => {
      await step(
        { kind: "EnsureImage", container: name },
        async () => {
          recorder.pullProgress(mounts, { name: "", image: "model:1" }, progress);
          recorder.pullProgress(mounts, { name: "", image: "model:2" }, { ...progress, layersDone: 3 });
          expect(lines().at(-1)).toBe(
            name === "app" ? 'image app running Pulling image "model:1": 1 of 4 layers done' : "image other running",
          );
        },
        { pod: mounts },
      );
    };
    await during("app");
    await during("other");
  });

  test("a sandbox: what the runtime is at, until it is there", async () => {
    const { clock, recorder, lines, step } = setUp();
    const heard: string[] = [];
    const runtime = recorder.sandboxes<Pick<Runtime, "runPodSandbox">>({
      runPodSandbox: async ({ attempt }, _handler, onStep) => {
        onStep?.("create");
        await clock.advance(5);
        onStep?.("set up its network");
        if (attempt > 0) throw new AgentError("Internal", "no address");
        return "s0";
      },
    });
    for (const attempt of [1, 0]) {
      const config = { uid: "u1", attempt } as PodSandboxConfig;
      await step({ kind: "CreateSandbox", attempt }, async () => {
        await runtime.runPodSandbox(config, "", (said) => void heard.push(said));
        expect(lines().at(-1)).toBe("sandbox running set up its network");
      });
    }
    expect(lines().slice(1)).toEqual(["sandbox failed 5ms no address", "sandbox done 5ms"]);
    expect(heard.slice(2)).toEqual(["create", "set up its network"]);
  });

  test("an image that cannot be had: when the next try is", async () => {
    const { recorder, step } = setUp();
    await step(image, async () => {
      throw new StepError("ErrImagePull", "401", { retryAtMs: 12_345 });
    });
    expect(recorder.timelines.get("u1")?.entries.at(-1)).toMatchObject({
      state: "failed",
      detail: "401",
      retryAtMs: 12_345,
    });
  });

  test("nothing of what was called off", async () => {
    const { lines, step } = setUp();
    const stop = new AbortController();
    stop.abort();
    const canceled = async () => {
      throw new AgentError("Canceled", "canceled");
    };
    await step(image, canceled, { signal: stop.signal });
    expect(lines()).toEqual(["seen done"]);
  });

  test("volumes, each for itself; a failure before all of them as well", async () => {
    const { recorder, lines, step } = setUp();
    await step({ kind: "SetUpVolumes" }, async () => {
      recorder.volume(pod, "token")();
      recorder.volume(pod, "config")(new AgentError("NotFound", 'configmap "app" not found'));
      recorder.volume(pod, "slow")(new AgentError("Canceled", "canceled"));
      throw new StepError("ContainerCreating", "MountVolume.SetUp failed …");
    });
    expect(lines().slice(1)).toEqual(["volume token done 0ms", 'volume config failed 0ms configmap "app" not found']);
    await step({ kind: "SetUpVolumes" }, async () => {
      throw new StepError("ContainerCreating", "no space left");
    });
    expect(lines().at(-1)).toBe("volumes failed no space left");
  });

  test("the end: hook, stop with its reason, sandbox, volumes, clean-up", async () => {
    const { lines, step, say } = setUp();
    await step({ kind: "PreStop", containerID: "c", container: "app", graceSeconds: 30, why: "Stopping" }, async () => {
      say("Killing", "Stopping");
      say("FailedPreStopHook", "PreStopHook failed");
    });
    const kill = { kind: "KillContainer", containerID: "c", container: "app", graceSeconds: 30 } as const;
    await step({ ...kill, why: "failed liveness probe" }, async () => {});
    await step({ kind: "StopSandbox", sandboxID: "s0" }, async () => {});
    await step({ kind: "RemoveContainer", containerID: "c" }, async () => {});
    await step({ kind: "TearDownVolumes" }, async () => {});
    await step({ kind: "CleanUp" }, async () => {});
    expect(lines().slice(1)).toEqual([
      "preStop app done 0ms",
      "FailedPreStopHook app failed PreStopHook failed",
      "stop app done 0ms failed liveness probe (grace 30 s)",
      "sandbox stop done 0ms",
      "volume tear-down done 0ms",
      "clean-up done 0ms cgroup",
    ]);
  });

  test("probes: the newest words, counted", () => {
    const { lines, say } = setUp();
    say("Unhealthy", "Readiness probe failed: 10:00");
    say("Unhealthy", "Readiness probe failed: 10:01");
    say("Unhealthy", "Liveness probe errored and resulted in unknown state: no");
    expect(lines().slice(1)).toEqual([
      "readiness probe app failed Readiness probe failed: 10:01 x2",
      "liveness probe app failed Liveness probe errored and resulted in unknown state: no",
    ]);
  });

  test("exits, with the time that the container ran", () => {
    const { metrics, lines } = setUp();
    const before = snapshot({ containers: [containerOf()] });
    metrics.looked(pod, before, snapshot({ containers: [exited({ exitCode: 137, reason: "OOMKilled" })] }));
    expect(lines().at(-1)).toBe("exit app failed 1000ms exit code 137 (OOMKilled)");
  });

  test("readiness and the pod's end, as the status tells them", async () => {
    const { clock, recorder, metrics, lines } = setUp();
    const ready = (status: "True" | "False", message?: string): PodStatus => ({
      phase: "Running",
      conditions: [{ type: "Ready", status, ...(message === undefined ? {} : { message }) }],
    });
    metrics.statusWanted("u1", { phase: "Pending" });
    await clock.advance(1_000);
    metrics.statusWanted("u1", ready("True"));
    const atMs = clock.now();
    await clock.advance(1_000);
    metrics.statusWanted("u1", ready("True"));
    expect(recorder.state("u1")).toEqual({ state: "Running", sinceMs: atMs });
    metrics.statusWanted("u1", ready("False", "containers with unready status: [app]"));
    metrics.statusWanted("u1", { phase: "Failed", reason: "Evicted", message: "no memory" });
    expect(lines().slice(1)).toEqual([
      "ready done",
      "not ready done containers with unready status: [app]",
      "finished done no memory",
    ]);
    expect(recorder.state("u1")?.state).toBe("Evicted");
  });

  test("what the API server shows: the pod, its changes, its deletion", () => {
    const { metrics, lines } = setUp();
    const changed = (metadata: Partial<Pod["metadata"]>) =>
      metrics.seen({ ...pod, metadata: { ...pod.metadata, ...metadata } });
    changed({});
    changed({ generation: 2 });
    const deletion = { generation: 3, deletionTimestamp: "2026-01-01T00:00:30Z", deletionGracePeriodSeconds: 30 };
    changed(deletion);
    changed(deletion);
    metrics.gone("u1");
    expect(lines()).toEqual(["seen done", "changed done generation 2", "deleted done grace 30 s", "gone done"]);
  });

  test("status patches: when and how long, and those that were refused", async () => {
    const { clock, recorder, metrics, lines } = setUp();
    metrics.statusWanted("u1", { phase: "Pending" });
    let answer: () => Promise<never> = async () => {
      await clock.advance(6);
      return {} as never;
    };
    const client = recorder.patches({ patch: () => answer() } as Pick<ApiClient, "patch">);
    const send = async () => await client.patch(pods, { namespace: "ns", name: "web" }, {}, { type: "strategic" });
    await send();
    answer = async () => {
      throw new AgentError("Unavailable", "connection refused");
    };
    await expect(send()).rejects.toThrow("connection refused");
    expect(lines().slice(1)).toEqual(["status done 6ms Pending", "status failed 0ms connection refused"]);
  });
});

test("a state lasts as long as it does when the clock jumps", async () => {
  const clock = new JumpyClock();
  const { recorder, metrics } = setUp(clock);
  metrics.statusWanted("u1", { phase: "Pending" });
  await clock.advance(5_000);
  clock.skewMs -= 3_600_000;
  expect(recorder.state("u1")?.sinceMs).toBe(clock.now() - 5_000);
});

test("what is told to others reaches them as before", () => {
  const { told, say } = setUp();
  for (const reason of ["Created", "Unhealthy", "Killing", "OutOfcpu"]) say(reason, "");
  expect(told).toEqual(["Created", "Unhealthy", "Killing", "OutOfcpu"]);
});

test("nothing is kept of pods of which nothing is left, but their timeline for a while", () => {
  const { recorder } = setUp();
  recorder.ended("u1");
  expect(recorder.state("u1")).toBeUndefined();
  expect(recorder.timelines.get("u1")).toBeUndefined();
  expect(recorder.timelines.findEnded("ns", "web")).toBeDefined();
});
