import { describe, expect, test, vi } from "vitest";
import type { ApiClient } from "../../../agent/kube/port.ts";
import type { Pod, PodStatus } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import {
  patchesInFlightMax,
  patchRetry,
  StatusWriter,
  type StatusWriterDeps,
} from "../../../agent/pods/status-writer.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { podOf } from "./support.ts";

/** A server that keeps statuses, answers patches when told to, and can fail. */
function setUp(metrics?: StatusWriterDeps["metrics"]) {
  const clock = new FakeClock();
  const written: string[] = [];
  const patches: {
    name: string;
    patch: { metadata: { uid: string }; status: PodStatus };
    answer(result: unknown): void;
  }[] = [];
  const patch = (_resource: unknown, { name }: { name: string }, body: never) =>
    new Promise<Pod>((resolve, reject) => {
      patches.push({
        name,
        patch: body,
        answer: (result) => (result instanceof Error ? reject(result) : resolve(result as Pod)),
      });
    });
  const writer = new StatusWriter({
    client: { patch } as unknown as ApiClient,
    clock,
    log: silentLogger,
    onWritten: (uid) => written.push(uid),
    ...(metrics === undefined ? {} : { metrics }),
  });
  const stop = new AbortController();
  writer.start(stop.signal);
  return { clock, writer, patches, written, stop };
}

const stored = (version: number, status: PodStatus = {}): Pod => ({
  ...podOf({}, { resourceVersion: String(version) }),
  status,
});
const settle = async () => await new Promise((resolve) => setImmediate(resolve));

test("one patch at a time for a pod, the latest wins, and the answer is the base of the next", async () => {
  const { writer, patches, written } = setUp();
  writer.observe(stored(1));
  writer.set("u1", { phase: "Pending" });
  writer.set("u1", { phase: "Running", podIP: "10.0.0.2" });
  writer.set("u1", { phase: "Running", podIP: "10.0.0.3" });
  expect(patches.map(({ patch }) => patch)).toEqual([{ metadata: { uid: "u1" }, status: { phase: "Pending" } }]);
  patches[0]?.answer(stored(2, { phase: "Pending" }));
  await settle();
  expect(patches[1]?.patch.status).toEqual({ phase: "Running", podIP: "10.0.0.3" });
  patches[1]?.answer(stored(3, { phase: "Running", podIP: "10.0.0.3" }));
  await settle();
  expect(patches).toHaveLength(2);
  expect(written).toEqual(["u1", "u1"]);
  expect(writer.known("u1")?.metadata.resourceVersion).toBe("3");
});

test("a watch that is behind does not cause the same patch again", async () => {
  const { writer, patches } = setUp();
  writer.observe(stored(1));
  writer.set("u1", { phase: "Running" });
  patches[0]?.answer(stored(9, { phase: "Running" }));
  await settle();
  writer.observe(stored(2));
  expect(patches).toHaveLength(1);
});

test("what somebody else changed back is written again", async () => {
  const { writer, patches } = setUp();
  writer.observe(stored(1));
  writer.set("u1", { phase: "Running" });
  patches[0]?.answer(stored(2, { phase: "Running" }));
  await settle();
  writer.observe(stored(3, { phase: "Pending" }));
  expect(patches).toHaveLength(2);
});

test("a server that stores something else than was sent is not asked for ever", async () => {
  const { writer, patches } = setUp();
  writer.observe(stored(1));
  writer.set("u1", { phase: "Running", podIP: "bad" });
  patches[0]?.answer(stored(2, { phase: "Running" }));
  await settle();
  patches[1]?.answer(stored(3, { phase: "Running" }));
  await settle();
  expect(patches).toHaveLength(2);
});

test("a failure is retried with backoff, and loses nothing that was set meanwhile", async () => {
  const { writer, patches, clock } = setUp();
  writer.observe(stored(1));
  writer.set("u1", { phase: "Pending" });
  patches[0]?.answer(new AgentError("Unavailable", "away"));
  await settle();
  writer.set("u1", { phase: "Running" });
  expect(patches).toHaveLength(1);
  await clock.advance(patchRetry.baseMs);
  expect(patches[1]?.patch.status).toEqual({ phase: "Running" });
});

test("a pod that is gone is not asked about in haste, nor after the watch has said so", async () => {
  const { writer, patches, clock } = setUp();
  writer.observe(stored(1));
  writer.set("u1", { phase: "Running" });
  patches[0]?.answer(new AgentError("Conflict", "the UID in the precondition does not match"));
  await settle();
  writer.set("u1", { phase: "Failed" });
  await clock.advance(patchRetry.maxMs - 1);
  expect(patches).toHaveLength(1);
  writer.forget("u1");
  await clock.advance(60_000);
  expect(patches).toHaveLength(1);
});

test("a bounded number of patches is under way", async () => {
  const { writer, patches } = setUp();
  for (let i = 0; i < 3 * patchesInFlightMax; i++) {
    const pod = podOf({}, { name: `pod-${i}`, uid: `u${i}`, resourceVersion: "1" });
    writer.observe(pod);
    writer.set(`u${i}`, { phase: "Running" });
  }
  expect(patches).toHaveLength(patchesInFlightMax);
  patches[0]?.answer({
    ...podOf({}, { name: "pod-0", uid: "u0", resourceVersion: "2" }),
    status: { phase: "Running" },
  });
  await vi.waitFor(() => expect(patches).toHaveLength(patchesInFlightMax + 1));
});

test("the time from wanting a status to having it written is measured, failures and waits included", async () => {
  const seconds: number[] = [];
  const phases: unknown[] = [];
  const { clock, writer, patches } = setUp({
    statusSeconds: { observe: (_, value) => seconds.push(value), remove: () => {} },
    statusWanted: (uid, { phase }) => phases.push([uid, phase]),
  });
  writer.observe(stored(1));
  writer.set("u1", { phase: "Pending" });
  await clock.advance(100);
  writer.set("u1", { phase: "Running" }); // waits for the one under way
  await clock.advance(400);
  patches[0]?.answer(stored(2, { phase: "Pending" }));
  await settle();
  await clock.advance(1_000);
  patches[1]?.answer(new AgentError("Unavailable", "no route"));
  await settle();
  await clock.advance(patchRetry.maxMs);
  patches[2]?.answer(stored(3, { phase: "Running" }));
  await settle();
  writer.set("u1", { phase: "Running" }); // nothing to send
  expect(seconds).toEqual([0.5, 1.4 + patchRetry.maxMs / 1_000]);
  expect(phases).toEqual([
    ["u1", "Pending"],
    ["u1", "Running"],
    ["u1", "Running"],
  ]);
});

describe("a static pod", () => {
  const annotations = { "kubernetes.io/config.source": "file" };
  const own: Pod = { ...podOf({}, { annotations }), status: { phase: "Pending" } };
  const mirrorOf = (uid: string, version: number, status: PodStatus = { phase: "Pending" }): Pod => ({
    ...podOf({}, { uid, resourceVersion: String(version), annotations: { "kubernetes.io/config.mirror": "u1" } }),
    status,
  });

  test("has a status that is written nowhere as long as nothing stands for it", () => {
    const { writer, patches } = setUp();
    writer.hold(own);
    writer.set("u1", { phase: "Running" });
    expect(writer.wanted("u1")).toEqual({ phase: "Running" });
    expect(writer.known("u1")).toBe(own);
    expect(patches).toEqual([]);
  });

  test("has its status on its mirror pod, by that one's UID", async () => {
    const { writer, patches, written } = setUp();
    writer.hold(own);
    writer.set("u1", { phase: "Running" });
    writer.observeMirror("u1", mirrorOf("m1", 5));
    expect(patches.map(({ patch }) => patch)).toEqual([{ metadata: { uid: "m1" }, status: { phase: "Running" } }]);
    patches[0]?.answer(mirrorOf("m1", 6, { phase: "Running" }));
    await settle();
    expect(written).toEqual(["u1"]);
    writer.hold(own); // told about again: it still has its mirror pod
    writer.set("u1", { phase: "Running", podIP: "10.0.0.2" });
    expect(patches[1]?.patch).toEqual({ metadata: { uid: "m1" }, status: { podIP: "10.0.0.2" } });
  });

  test("tells everything anew to a new mirror pod, and at once, whatever became of the old one", async () => {
    const { writer, patches, clock } = setUp();
    writer.hold(own);
    writer.observeMirror("u1", mirrorOf("m1", 5));
    writer.set("u1", { phase: "Running", podIP: "10.0.0.2" });
    patches[0]?.answer(new AgentError("NotFound", "gone"));
    await settle();
    writer.forgetMirror(own, mirrorOf("m1", 5));
    expect(writer.wanted("u1")).toEqual({ phase: "Running", podIP: "10.0.0.2" });
    await clock.advance(patchRetry.maxMs);
    expect(patches).toHaveLength(1); // nobody is there to be told
    writer.observeMirror("u1", mirrorOf("m2", 9));
    expect(patches[1]?.patch).toEqual({
      metadata: { uid: "m2" },
      status: { phase: "Running", podIP: "10.0.0.2" },
    });
  });

  test("does not rest for its new mirror pod because the old one was gone", async () => {
    const { writer, patches } = setUp();
    writer.hold(own);
    writer.observeMirror("u1", mirrorOf("m1", 5));
    writer.set("u1", { phase: "Running" });
    patches[0]?.answer(new AgentError("NotFound", "gone"));
    await settle();
    writer.observeMirror("u1", mirrorOf("m2", 9)); // the old one's end is told later
    expect(patches[1]?.patch.metadata.uid).toBe("m2");
    patches[1]?.answer(mirrorOf("m2", 10, { phase: "Running" }));
    await settle();
    writer.forgetMirror(own, mirrorOf("m1", 5));
    writer.set("u1", { phase: "Failed" });
    expect(patches[2]?.patch).toEqual({ metadata: { uid: "m2" }, status: { phase: "Failed" } });
  });

  test("an answer for the old mirror pod says nothing of the new one", async () => {
    const { writer, patches } = setUp();
    writer.hold(own);
    writer.observeMirror("u1", mirrorOf("m1", 5));
    writer.set("u1", { phase: "Running" });
    writer.observeMirror("u1", mirrorOf("m2", 9));
    patches[0]?.answer(mirrorOf("m1", 6, { phase: "Running" }));
    await settle();
    expect(writer.known("u1")?.metadata.uid).toBe("m2");
    expect(patches[1]?.patch).toEqual({ metadata: { uid: "m2" }, status: { phase: "Running" } });
  });
});
