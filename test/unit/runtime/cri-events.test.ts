import { expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { readEnvelope, type TaskEvent } from "../../../agent/runtime/cri/containerd-events.ts";
import { type EventSource, followEvents } from "../../../agent/runtime/cri/events.ts";
import { PodIDs } from "../../../agent/runtime/cri/pod-ids.ts";
import { loadProto } from "../../../agent/lib/grpc/proto.ts";
import type { RuntimeEvent } from "../../../agent/runtime/port.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

const everything: RuntimeEvent = { kind: "unknown", podUID: undefined, containerID: undefined };
const unimplemented = new AgentError("Unimplemented", "unknown method");
const away = new AgentError("Unavailable", "connection refused");

/** A runtime whose streams the test opens, feeds and ends. */
class FakeSource implements EventSource {
  serves = { cri: true, containerd: true };
  isUp = true;
  opened: string[] = [];
  looks = 0;
  endedAfterLooks = 1;
  known = new Map<string, { podUID: string; kind: "container" | "sandbox" }>();
  emitCRI: (event: RuntimeEvent) => void = () => {};
  emitTask: (event: TaskEvent) => void = () => {};
  endStream: (err?: AgentError) => void = () => {};

  streamCRI: EventSource["streamCRI"] = async (onEvent, signal) => {
    this.emitCRI = onEvent;
    return await this.#stream("CRI", this.serves.cri, signal);
  };
  streamContainerd: EventSource["streamContainerd"] = async (onEvent, signal) => {
    this.emitTask = onEvent;
    return await this.#stream("containerd", this.serves.containerd, signal);
  };
  ping = async () => {
    if (!this.isUp) throw away;
  };
  hasEnded = async () => {
    this.looks += 1;
    return this.looks >= this.endedAfterLooks;
  };
  lookUp = async (id: string) => this.known.get(id);

  async #stream(name: string, served: boolean, signal: AbortSignal): Promise<AgentError | undefined> {
    this.opened.push(name);
    if (!this.isUp) return away;
    if (!served) return unimplemented;
    const { promise, resolve } = Promise.withResolvers<AgentError | undefined>();
    this.endStream = resolve;
    signal.addEventListener("abort", () => resolve(new AgentError("Canceled", "canceled")));
    return await promise;
  }
}

async function setUp(change: (source: FakeSource) => void = () => {}) {
  const source = new FakeSource();
  change(source);
  const ids = new PodIDs();
  const clock = new FakeClock();
  const stop = new AbortController();
  const seen: RuntimeEvent[] = [];
  const done = followEvents({ source, ids, clock, log: silentLogger }, (event) => void seen.push(event), stop.signal);
  await settle();
  const end = async () => {
    stop.abort();
    await done;
    expect(clock.waiting).toBe(0);
  };
  return { source, ids, clock, seen, end };
}

test("a stream begins with a wake for all, and another when the subscription must be there", async () => {
  const { source, clock, seen, end } = await setUp();
  expect(source.opened).toEqual(["CRI"]);
  expect(seen).toEqual([everything]);
  await clock.advance(250);
  expect(seen).toEqual([everything, everything]);
  const event: RuntimeEvent = { kind: "exited", podUID: "u1", containerID: "c1" };
  source.emitCRI(event);
  expect(seen.at(-1)).toEqual(event);
  await end();
});

test("without CRI events containerd's own are followed", async () => {
  const { source, ids, clock, seen, end } = await setUp((s) => (s.serves.cri = false));
  expect(source.opened).toEqual(["CRI", "containerd"]);
  await clock.advance(250);
  ids.add("c1", { podUID: "u1", kind: "container" });
  source.emitTask({ kind: "started", containerID: "c1", createdAtMs: undefined });
  await settle();
  expect(seen.at(-1)).toEqual({ kind: "started", podUID: "u1", containerID: "c1" });
  await end();
});

test("an exit wakes when CRI's view has it, one wake only", async () => {
  const { source, ids, clock, seen, end } = await setUp((s) => {
    s.serves.cri = false;
    s.endedAfterLooks = 4;
  });
  await clock.advance(250);
  seen.length = 0;
  ids.add("c1", { podUID: "u1", kind: "container" });
  source.emitTask({ kind: "exited", containerID: "c1", createdAtMs: 1_000 });
  await settle();
  await clock.advance(23);
  expect(seen).toEqual([]);
  await clock.advance(1); // looks at 8, 16, 20 and 24 ms
  expect(seen).toEqual([{ kind: "exited", podUID: "u1", containerID: "c1", createdAtMs: 1_000 }]);
  await clock.advance(10_000);
  expect(seen).toHaveLength(1);
  await end();
});

test("an exit that CRI never shows wakes all the same, after 255 ms", async () => {
  const { source, ids, clock, seen, end } = await setUp((s) => {
    s.serves.cri = false;
    s.endedAfterLooks = Number.POSITIVE_INFINITY;
  });
  await clock.advance(250);
  seen.length = 0;
  ids.add("c1", { podUID: "u1", kind: "container" });
  source.emitTask({ kind: "exited", containerID: "c1", createdAtMs: 1_000 });
  await settle();
  await clock.advance(254);
  expect(seen).toEqual([]);
  await clock.advance(1);
  expect(seen).toHaveLength(1);
  await end();
});

test("an unknown ID is asked of the runtime; one that nobody knows may be anyone's", async () => {
  const { source, clock, seen, end } = await setUp((s) => {
    s.serves.cri = false;
    s.known.set("s1", { podUID: "u7", kind: "sandbox" });
  });
  await clock.advance(250);
  seen.length = 0;
  source.emitTask({ kind: "started", containerID: "new", createdAtMs: undefined });
  source.emitTask({ kind: "deleted", containerID: "gone", createdAtMs: undefined });
  source.emitTask({ kind: "exited", containerID: "s1", createdAtMs: undefined });
  source.emitTask({ kind: "exited", containerID: "lost", createdAtMs: undefined });
  await settle();
  await clock.advance(8);
  expect(seen).toEqual([
    { kind: "exited", podUID: undefined, containerID: "lost" },
    { kind: "exited", podUID: "u7", containerID: "s1" },
  ]);
  await end();
});

test("after an end it reconnects with growing rests, and says so with a wake for all", async () => {
  const { source, clock, seen, end } = await setUp();
  await clock.advance(250);
  seen.length = 0;
  source.isUp = false;
  source.endStream(away);
  await settle();
  await clock.advance(100); // first rest: 100 ms at most
  expect(source.opened).toHaveLength(2);
  await clock.advance(60_000);
  const tries = source.opened.length;
  expect(tries).toBeGreaterThan(60_000 / 3_000);
  expect(tries).toBeLessThan(40);
  expect(seen).toEqual([]);
  source.isUp = true;
  await clock.advance(3_000);
  expect(seen[0]).toEqual(everything);
  await end();
});

test("a runtime that serves no events is left alone, but asked again", async () => {
  const { source, clock, end } = await setUp((s) => (s.serves = { cri: false, containerd: false }));
  expect(source.opened).toEqual(["CRI", "containerd"]);
  await clock.advance(299_999);
  expect(source.opened).toHaveLength(2);
  await clock.advance(1);
  expect(source.opened).toHaveLength(4);
  await end();
});

test("the cache of IDs drops its oldest entry at its bound", () => {
  const ids = new PodIDs();
  for (let n = 0; n <= 16_384; n += 1) ids.add(`c${n}`, { podUID: "u", kind: "container" });
  expect(ids.get("c0")).toBeUndefined();
  expect(ids.get("c1")).toBeDefined();
  expect(ids.get("c16384")).toBeDefined();
});

/** One string field of a protobuf message. */
const field = (number: number, text: string) =>
  Buffer.concat([Buffer.from([(number << 3) | 2, text.length]), Buffer.from(text)]);
const pid = Buffer.from([(2 << 3) | 0, 42]);

const envelopes: { name: string; topic: string; value: Buffer; namespace?: string; want: TaskEvent | undefined }[] = [
  {
    name: "a start",
    topic: "/tasks/start",
    value: Buffer.concat([field(1, "c1"), pid]),
    want: { kind: "started", containerID: "c1", createdAtMs: 1_500.25 },
  },
  {
    name: "an exit",
    topic: "/tasks/exit",
    value: Buffer.concat([field(1, "c1"), field(2, "c1")]),
    want: { kind: "exited", containerID: "c1", createdAtMs: 1_500.25 },
  },
  {
    name: "an exec that ended",
    topic: "/tasks/exit",
    value: Buffer.concat([field(1, "c1"), field(2, "exec-1")]),
    want: undefined,
  },
  {
    name: "an OOM kill",
    topic: "/tasks/oom",
    value: field(1, "c1"),
    want: { kind: "unknown", containerID: "c1", createdAtMs: 1_500.25 },
  },
  {
    name: "a removal",
    topic: "/containers/delete",
    value: field(1, "c1"),
    want: { kind: "deleted", containerID: "c1", createdAtMs: 1_500.25 },
  },
  { name: "another topic", topic: "/images/create", value: field(1, "c1"), want: undefined },
  { name: "another namespace", topic: "/tasks/exit", value: field(1, "c1"), namespace: "moby", want: undefined },
];
for (const { name, topic, value, namespace = "k8s.io", want } of envelopes) {
  test(`containerd's events: ${name}`, async () => {
    const proto = await loadProto("containerd-events.proto");
    const timestamp = { seconds: "1", nanos: 500_250_000 };
    expect(readEnvelope(proto, { timestamp, namespace, topic, event: { type_url: "x", value } })).toEqual(want);
  });
}
