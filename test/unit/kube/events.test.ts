import { expect, test } from "vitest";
import { correlatorLimits, EventCorrelator, type Occurrence } from "../../../agent/kube/event-correlator.ts";
import { ApiError } from "../../../agent/kube/api-error.ts";
import { createEventRecorder, eventLimits } from "../../../agent/kube/events.ts";
import type { ApiClient } from "../../../agent/kube/port.ts";
import type { CoreEvent, ObjectReference } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { createLogger } from "../../../agent/lib/log.ts";
import { FakeClock, settle } from "./fake-clock.ts";

const web: ObjectReference = { apiVersion: "v1", kind: "Pod", namespace: "ns", name: "web", uid: "u1" };

function makeCorrelator() {
  let names = 0;
  const correlator = new EventCorrelator(() => `e${(names += 1)}`);
  const say = (message: string, more: Partial<Occurrence> = {}) =>
    correlator.correlate({ about: web, type: "Normal", reason: "Pulled", message, atMs: 0, ...more });
  return say;
}

test("equal occurrences raise one event's count", () => {
  const say = makeCorrelator();
  expect(say("m", { atMs: 1_000 })).toEqual({ name: "e1", message: "m", count: 1, firstAtMs: 1_000, lastAtMs: 1_000 });
  expect(say("m", { atMs: 5_000 })).toEqual({ name: "e1", message: "m", count: 2, firstAtMs: 1_000, lastAtMs: 5_000 });
});

test.each([
  { name: "message", more: { message: "other" } },
  { name: "reason", more: { reason: "Failed" } },
  { name: "type", more: { type: "Warning" as const } },
  { name: "object", more: { about: { ...web, uid: "u2" } } },
  { name: "container", more: { about: { ...web, fieldPath: "spec.containers{b}" } } },
])("another $name is another event", ({ more }) => {
  const say = makeCorrelator();
  say("m");
  expect(say("m", more)).toMatchObject({ name: "e2", count: 1 });
});

test("more than ten different messages of one reason are combined, until ten quiet minutes have passed", () => {
  const say = makeCorrelator();
  for (let i = 1; i <= 10; i += 1) expect(say(`m${i}`)).toMatchObject({ message: `m${i}`, count: 1 });
  expect(say("m11")).toMatchObject({ name: "e11", message: "(combined from similar events): m11", count: 1 });
  expect(say("m12")).toMatchObject({ name: "e11", message: "(combined from similar events): m12", count: 2 });
  expect(say("m3")).toMatchObject({ name: "e3", message: "m3", count: 2 });
  expect(say("other", { reason: "Failed" })).toMatchObject({ message: "other" });
  expect(say("m13", { atMs: 600_000 })).toMatchObject({ count: 3 });
  expect(say("m14", { atMs: 1_200_001 })).toMatchObject({ message: "m14", count: 1 });
});

test("25 events about one object at once, then one every five minutes; other objects are not touched", () => {
  const say = makeCorrelator();
  const sent = Array.from({ length: 30 }, () => say("m")).filter((event) => event !== undefined);
  expect(sent).toHaveLength(25);
  expect(say("m", { about: { ...web, name: "db" } })).toBeDefined();
  expect(say("m", { atMs: 299_999 })).toBeUndefined();
  expect(say("m", { atMs: 300_000 })).toMatchObject({ count: 32 });
  expect(say("m", { atMs: 300_001 })).toBeUndefined();
});

test("the correlator forgets the least recently used", () => {
  const correlator = new EventCorrelator(({ about }) => `${about.name}`, { ...correlatorLimits, cacheEntries: 2 });
  const say = (name: string) =>
    correlator.correlate({ about: { ...web, name }, type: "Normal", reason: "r", message: "m", atMs: 0 })?.count;
  expect([say("a"), say("b"), say("a"), say("c"), say("a"), say("b")]).toEqual([1, 1, 2, 1, 3, 1]);
});

type Sent =
  | { verb: "create"; event: CoreEvent }
  | { verb: "patch"; name: string; namespace: string | undefined; patch: unknown };

function makeRecorder(more: { host?: string; qps?: number; burst?: number } = {}) {
  const clock = new FakeClock();
  const sent: Sent[] = [];
  let fail: (() => Error | undefined) | undefined;
  const client = {
    create: async (_resource: unknown, event: CoreEvent) => {
      sent.push({ verb: "create", event });
      const err = fail?.();
      if (err !== undefined) throw err;
      return event;
    },
    patch: async (_resource: unknown, key: { name: string; namespace?: string }, patch: unknown) => {
      sent.push({ verb: "patch", name: key.name, namespace: key.namespace, patch });
      const err = fail?.();
      if (err !== undefined) throw err;
      return patch;
    },
  } as unknown as Pick<ApiClient, "create" | "patch">; // generic methods, of which the recorder uses one resource
  const lines: string[] = [];
  const recorder = createEventRecorder({
    client,
    clock,
    log: createLogger({ level: "warn", stream: { write: (line) => void lines.push(line) } }),
    component: "kubelet",
    host: "n1",
    qps: -1,
    burst: 0,
    ...more,
  });
  const stop = new AbortController();
  const running = recorder.run(stop.signal);
  const warnings = () => lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  return { clock, sent, recorder, stop, running, warnings, failWith: (f: typeof fail) => (fail = f) };
}

test("events look as the reference's do", async () => {
  const t = makeRecorder();
  t.recorder.event(web, "Warning", "BackOff", "Back-off restarting failed container");
  t.recorder.event({ kind: "Node", name: "n1", uid: "n1" }, "Normal", "Starting", "Starting kubelet.");
  await settle();
  const nanos = (BigInt(Date.UTC(2026, 0, 1)) * 1_000_000n).toString(16);
  expect(t.sent[0]).toEqual({
    verb: "create",
    event: {
      apiVersion: "v1",
      kind: "Event",
      metadata: { name: `web.${nanos}`, namespace: "ns" },
      involvedObject: web,
      reason: "BackOff",
      message: "Back-off restarting failed container",
      source: { component: "kubelet", host: "n1" },
      firstTimestamp: "2026-01-01T00:00:00Z",
      lastTimestamp: "2026-01-01T00:00:00Z",
      eventTime: null,
      count: 1,
      type: "Warning",
      reportingComponent: "kubelet",
      reportingInstance: "n1",
    },
  });
  expect(t.sent[1]).toMatchObject({ event: { metadata: { namespace: "default" } } });
  t.stop.abort();
  await t.running;
});

test("a repeated event is patched; one that is gone on the server is made again with its count", async () => {
  const t = makeRecorder();
  t.recorder.event(web, "Normal", "Pulled", "m");
  await t.clock.advance(2_000);
  t.recorder.event(web, "Normal", "Pulled", "m");
  await settle();
  const first = t.sent[0]?.verb === "create" ? t.sent[0].event : undefined;
  expect(t.sent[1]).toEqual({
    verb: "patch",
    name: first?.metadata.name,
    namespace: "ns",
    patch: { count: 2, message: "m", lastTimestamp: "2026-01-01T00:00:02Z" },
  });
  t.failWith(() => (t.sent.at(-1)?.verb === "patch" ? new AgentError("NotFound", "gone") : undefined));
  t.recorder.event(web, "Normal", "Pulled", "m");
  await settle();
  expect(t.sent.slice(2)).toMatchObject([
    { verb: "patch" },
    { verb: "create", event: { metadata: first?.metadata, count: 3, firstTimestamp: "2026-01-01T00:00:00Z" } },
  ]);
});

test("events of one millisecond have different names; a name the server would refuse is replaced", async () => {
  const t = makeRecorder();
  t.recorder.event(web, "Normal", "A", "m");
  t.recorder.event(web, "Normal", "B", "m");
  t.recorder.event({ kind: "Image", name: "Not_a/name" }, "Normal", "C", "m");
  await settle();
  const names = t.sent.map((s) => (s.verb === "create" ? s.event.metadata.name : ""));
  expect(new Set(names).size).toBe(3);
  expect(names[2]).toMatch(/^[0-9a-f-]{36}$/);
});

test("a server that is away is asked a few times, and the event given up at last", async () => {
  const t = makeRecorder();
  t.failWith(() => new AgentError("Unavailable", "away"));
  t.recorder.event(web, "Normal", "A", "m");
  await settle();
  expect(t.sent).toHaveLength(1);
  for (let i = 0; i < 20; i += 1) await t.clock.advance(eventLimits.retryMs);
  expect(t.sent).toHaveLength(eventLimits.triesMax);
  expect(t.recorder.dropped).toBe(1);
});

test("an event that comes back from a bad moment is sent, and a late success is success", async () => {
  const t = makeRecorder();
  t.failWith(() =>
    t.sent.length === 1 ? new AgentError("Unavailable", "away") : new AgentError("AlreadyExists", "there"),
  );
  t.recorder.event(web, "Normal", "A", "m");
  await settle();
  await t.clock.advance(eventLimits.retryMs);
  expect(t.sent).toHaveLength(2);
  expect(t.recorder.dropped).toBe(0);
});

test.each(["Forbidden", "Invalid"] as const)("what the server refuses as %s is not tried again", async (code) => {
  const t = makeRecorder();
  t.failWith(() => new AgentError(code, "somebody said no"));
  t.recorder.event(web, "Normal", "A", "m");
  await settle();
  await t.clock.advance(60_000);
  expect(t.sent).toHaveLength(1);
  expect(t.recorder.dropped).toBe(1);
  const about = { kind: "Pod", namespace: "ns", name: "web", reason: "A" };
  expect(t.warnings()).toMatchObject([
    { msg: "events are being dropped", dropped: 1, err: "somebody said no", ...about },
  ]);
});

const ending = ["NamespaceTerminating"];
test.each([
  { name: "ends", refusal: new ApiError("Forbidden", "being terminated", { status: 403, causes: ending }) },
  { name: "has ended", refusal: new ApiError("NotFound", 'namespaces "ns" not found', { status: 404 }) },
])("an event of a namespace that $name is no loss, and not tried again", async ({ refusal }) => {
  const t = makeRecorder();
  t.failWith(() => refusal);
  t.recorder.event(web, "Normal", "A", "m");
  await settle();
  await t.clock.advance(60_000);
  expect(t.sent).toHaveLength(1);
  expect(t.recorder.dropped).toBe(0);
  expect(t.warnings()).toEqual([]);
});

test("events that are too many about one object are told with its name", async () => {
  const t = makeRecorder();
  for (let i = 0; i <= correlatorLimits.spamBurst; i += 1) t.recorder.event(web, "Normal", `R${i}`, "m");
  await settle();
  expect(t.recorder.dropped).toBe(1);
  expect(t.warnings()).toMatchObject([{ why: "too many about this object", namespace: "ns", name: "web" }]);
});

test("the full queue loses its oldest", async () => {
  const t = makeRecorder();
  for (let i = 0; i <= eventLimits.queueMax; i += 1) t.recorder.event({ ...web, name: `p${i}` }, "Normal", "A", "m");
  expect(t.recorder.dropped).toBe(1);
  t.stop.abort();
  await t.running;
  expect(t.sent).toHaveLength(eventLimits.queueMax);
  expect(t.sent[0]).toMatchObject({ event: { involvedObject: { name: "p1" } } });
});

test("the rate limit spreads a burst, and stopping does not wait for it beyond the flush", async () => {
  const t = makeRecorder({ qps: 1, burst: 2 });
  for (let i = 0; i < 10; i += 1) t.recorder.event({ ...web, name: `p${i}` }, "Normal", "A", "m");
  await settle();
  expect(t.sent).toHaveLength(2);
  await t.clock.advance(1_000);
  expect(t.sent).toHaveLength(3);
  t.stop.abort();
  await t.clock.advance(eventLimits.flushMs);
  await t.running;
  expect(t.sent.length).toBeLessThanOrEqual(5);
  expect(t.sent.length + t.recorder.dropped).toBe(10);
  expect(t.clock.waiting).toBe(0);
});

test("the limits are client-go's", () => {
  expect(eventLimits).toMatchObject({ queueMax: 1000, triesMax: 12, retryMs: 10_000 });
  expect(correlatorLimits).toEqual({
    similarMax: 10,
    similarWindowMs: 600_000,
    spamBurst: 25,
    spamRefillMs: 300_000,
    cacheEntries: 4096,
  });
});
