import type { HeapProfiler, Profiler } from "node:inspector";
import type { Session } from "node:inspector/promises";
import type { Clock } from "../../lib/clock.ts";
import { type CallFrame, encodePprof, type StackSample } from "./pprof-encode.ts";

// As Go's CPU profiler: 100 samples a second. V8's default of 1000 would cost more than the agent's own work.
const cpuPeriodMs = 10;
// Bytes allocated between two samples: V8's default is 32 KiB, Go's 512 KiB.
const heapPeriodBytes = 65_536;

/** Records where the CPU's time goes. Resolves to a gzipped pprof profile. Rejects when `signal` aborts. */
export async function profileCpu(durationMs: number, clock: Clock, signal: AbortSignal): Promise<Buffer> {
  return withSession(async (session) => {
    const startedAtMs = clock.now();
    await session.post("Profiler.enable");
    await session.post("Profiler.setSamplingInterval", { interval: cpuPeriodMs * 1000 });
    await session.post("Profiler.start");
    await clock.sleep(durationMs, signal); // closing the session ends the recording
    const { profile } = await session.post("Profiler.stop");
    const kinds = [
      { type: "samples", unit: "count" },
      { type: "cpu", unit: "nanoseconds" },
    ];
    const period = cpuPeriodMs * 1e6;
    return encodePprof({ kinds, samples: cpuSamples(profile), period, startedAtMs, durationMs });
  });
}

/**
 * Records what is allocated meanwhile: V8 keeps no record of earlier allocations. Resolves to a gzipped pprof profile.
 *
 * @param withFreed also what was freed again
 */
export async function profileHeap(
  durationMs: number,
  withFreed: boolean,
  clock: Clock,
  signal: AbortSignal,
): Promise<Buffer> {
  return withSession(async (session) => {
    const startedAtMs = clock.now();
    await session.post("HeapProfiler.startSampling", {
      samplingInterval: heapPeriodBytes,
      includeObjectsCollectedByMajorGC: withFreed,
      includeObjectsCollectedByMinorGC: withFreed,
    });
    await clock.sleep(durationMs, signal);
    const { profile } = await session.post("HeapProfiler.stopSampling");
    const kinds = [{ type: withFreed ? "alloc_space" : "inuse_space", unit: "bytes" }];
    return encodePprof({ kinds, samples: heapSamples(profile), period: heapPeriodBytes, startedAtMs, durationMs });
  });
}

async function withSession<T>(record: (session: Session) => Promise<T>): Promise<T> {
  const { Session } = await import("node:inspector/promises");
  const session = new Session();
  session.connect();
  try {
    return await record(session);
  } finally {
    session.disconnect();
  }
}

// What V8 calls places that are no code.
const notCode = new Set(["(root)", "(idle)", "(program)"]);

/** Samples of a CPU profile by stack. Time in which nothing ran is left out. */
export function* cpuSamples({ nodes }: Profiler.Profile): Generator<StackSample> {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const parents = new Map(nodes.flatMap(({ id, children = [] }) => children.map((child) => [child, id] as const)));
  for (const { id, callFrame, hitCount = 0 } of nodes) {
    if (hitCount === 0 || notCode.has(callFrame.functionName)) continue;
    const frames: CallFrame[] = [];
    for (let at = byId.get(id); at !== undefined; at = byId.get(parents.get(at.id) ?? -1)) {
      if (at.callFrame.functionName !== "(root)") frames.push(at.callFrame);
    }
    yield { frames, values: [hitCount, hitCount * cpuPeriodMs * 1e6] };
  }
}

/** Samples of a heap profile by stack. */
export function* heapSamples({ head }: HeapProfiler.SamplingHeapProfile): Generator<StackSample> {
  const open: { node: HeapProfiler.SamplingHeapProfileNode; callers: CallFrame[] }[] = [{ node: head, callers: [] }];
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    const { node, callers } = next;
    const frames = node.callFrame.functionName === "(root)" ? callers : [node.callFrame, ...callers];
    if (node.selfSize > 0) yield { frames, values: [node.selfSize] };
    for (const child of node.children) open.push({ node: child, callers: frames });
  }
}
