import { backoffMs } from "../../lib/backoff.ts";
import type { Clock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { ignoreAbort } from "../../lib/loop.ts";
import type { RuntimeEvent } from "../port.ts";
import type { DockerClient } from "./client.ts";
import { translateDockerError } from "./errors.ts";
import { podFilters, readContainer } from "./labels.ts";
import { kindOf } from "./ownership.ts";
import type { WireEvent } from "./wire.ts";

export interface EventsOptions {
  client: DockerClient;
  nodeName: string;
  clock: Clock;
  log: Logger;
  /** A sandbox was removed, by whomever: what lies outside of it, as its network's addresses, has no owner any more. */
  onSandboxGone(sandboxID: string): void;
  /** The kernel ended a process of this container for want of memory. */
  onOutOfMemory(containerID: string): void;
  /** Called before each connection but the first: the daemon may have become another version meanwhile. */
  refresh(): Promise<void>;
}

// After the daemon went away: 100 ms doubling to 3 s, as with CRI.
const reconnect = { baseMs: 100, maxMs: 3_000, jitter: 0.2 };

// A connection that held this long was no failed one: the next one that breaks begins the back-off anew.
const steadyMs = 10_000;

// The daemon answers before it subscribes us. It replays what it remembers (256 events) from this long before.
const replaySeconds = 2;

// An event has all annotations of a pod, 256 KiB at most, and of those characters that JSON of the daemon writes as six bytes each,
// and labels besides.
const lineCharsMax = 2 << 20;

// What can change a pod. Executions and health checks are left out: a probe by exec would make three events each time.
const actions: Readonly<Record<string, RuntimeEvent["kind"]>> = {
  create: "created",
  start: "started",
  die: "exited",
  oom: "unknown",
  destroy: "deleted",
};

/**
 * Delivers wake-ups until `signal` aborts. Each connection begins with a wake for all pods, as anything may have
 * happened since the last one. By the time of an event the daemon's own view has what it tells.
 */
export async function followDockerEvents(
  options: EventsOptions,
  onEvent: (event: RuntimeEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  const { clock, log } = options;
  let failures = 0;
  // What was last said of a failure, and whether its end is still to be told.
  let said = "";
  let isAway = false;
  const onOpen = () => {
    if (isAway) log.info("following the Docker daemon's events again");
    isAway = false;
  };
  while (!signal.aborted) {
    const connectedAt = clock.monotonic();
    let why = "closed by the daemon";
    try {
      if (failures > 0) await options.refresh();
      await followOnce(options, { onEvent, onOpen }, signal);
    } catch (err) {
      why = messageOf(err);
    }
    if (signal.aborted) return;
    failures = clock.monotonic() - connectedAt >= steadyMs ? 1 : failures + 1;
    if (failures === 1 || why !== said) {
      log.warn({ why }, "the Docker daemon's events cannot be followed, trying again");
      said = why;
      isAway = true;
    }
    await clock.sleep(backoffMs(failures, reconnect), signal).catch(ignoreAbort);
  }
}

async function followOnce(
  { client, nodeName, clock, log, onSandboxGone, onOutOfMemory }: EventsOptions,
  { onEvent, onOpen }: { onEvent: (event: RuntimeEvent) => void; onOpen: () => void },
  signal: AbortSignal,
): Promise<void> {
  const since = Math.floor(clock.now() / 1000) - replaySeconds;
  const filters = { type: ["container" as const], event: Object.keys(actions), ...podFilters() };
  const what = "follow the Docker daemon's events";
  const stream: NodeJS.ReadableStream = await client.call(
    what,
    async (abortSignal) => await client.docker.getEvents({ since, filters, abortSignal }),
    { signal },
  );
  onOpen();
  const anything = { kind: "unknown", podUID: undefined, containerID: undefined } as const;
  onEvent(anything);
  for await (const line of linesOf(stream, what)) {
    if (line === undefined) {
      log.warn(
        `an event of the Docker daemon longer than ${lineCharsMax} characters is taken for "anything may have changed"`,
      );
      onEvent(anything);
      continue;
    }
    const event = readEvent(line, nodeName);
    if (event === undefined) continue;
    if (event.isOutOfMemory) onOutOfMemory(event.wake.containerID ?? "");
    if (event.isSandboxGone) onSandboxGone(event.wake.containerID ?? "");
    onEvent(event.wake);
  }
}

/** One line of the stream; `undefined` for what concerns no pod and for what is no event. Pure. */
export function readEvent(
  line: string,
  nodeName: string,
): { wake: RuntimeEvent; isSandboxGone: boolean; isOutOfMemory: boolean } | undefined {
  const { Action = "", Actor, timeNano } = parseEvent(line);
  const kind = actions[Action];
  const labels = Actor?.Attributes ?? {};
  // Beside its labels, which an attribute of that name hides, the daemon tells a container's name.
  const owner = kindOf({ labels, names: [labels["name"] ?? ""] }, nodeName);
  if (kind === undefined || owner === undefined) return undefined;
  const { podUID } = readContainer(labels);
  const createdAtMs = typeof timeNano === "number" ? timeNano / 1e6 : undefined;
  return {
    wake: { kind, podUID, containerID: Actor?.ID, createdAtMs },
    isSandboxGone: kind === "deleted" && owner === "sandbox",
    isOutOfMemory: Action === "oom",
  };
}

function parseEvent(line: string): WireEvent {
  try {
    const parsed: unknown = JSON.parse(line);
    return typeof parsed === "object" && parsed !== null ? parsed : {};
  } catch {
    return {};
  }
}

/** `undefined` for a line that is too long to be kept. Rejects with AgentError. */
async function* linesOf(stream: NodeJS.ReadableStream, what: string): AsyncGenerator<string | undefined> {
  let rest = "";
  let isTooLong = false;
  stream.setEncoding("utf8");
  for await (const chunk of chunksOf(stream, what)) {
    const lines = (rest + String(chunk)).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      // Of one that was too long this is the end.
      if (!isTooLong) yield line;
      isTooLong = false;
    }
    if (rest.length <= lineCharsMax && !isTooLong) continue;
    if (!isTooLong) yield undefined;
    isTooLong = true;
    rest = "";
  }
}

async function* chunksOf(stream: NodeJS.ReadableStream, what: string): AsyncGenerator {
  try {
    yield* stream;
  } catch (err) {
    throw translateDockerError(err, what);
  }
}
