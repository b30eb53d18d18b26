import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../../lib/clock.ts";
import { rfc3339 } from "../../lib/rfc3339.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Runtime } from "../../runtime/port.ts";
import { type Handler, HttpError, type ServedPods } from "../port.ts";
import { sendJson } from "../respond.ts";

export interface CheckpointOptions {
  readonly pods: ServedPods;
  readonly runtime: Pick<Runtime, "list" | "checkpointContainer">;
  /** The kubelet's root directory; archives go to `checkpoints` in it. */
  readonly rootDir: string;
  readonly clock: Clock;
}

// CRI's own deadline: the runtime gets at least this much.
const timeoutSecondsMin = 120;
// As much as CRI's field holds.
const timeoutSecondsMax = Number.MAX_SAFE_INTEGER;

/** Serves /checkpoint/{namespace}/{pod}/{container}: freezes a running container into an archive. */
export function createCheckpointHandler({ pods, runtime, rootDir, clock }: CheckpointOptions): Handler {
  return async ({ params, query, response }) => {
    const { namespace = "", pod: podName = "", container = "" } = params;
    const pod = pods.find(namespace, podName);
    if (pod === undefined) throw new HttpError(404, "pod does not exist");
    const { containers, initContainers = [], ephemeralContainers = [] } = pod.spec;
    if (![...containers, ...initContainers, ...ephemeralContainers].some(({ name }) => name === container)) {
      throw new HttpError(404, `container ${container} does not exist`);
    }
    const timeoutSeconds = readTimeout(query.getAll("timeout").at(-1));
    const about = `${namespace}/${podName}/${container}`;
    try {
      const list = await runtime.list(pod.metadata.uid);
      const newest = list.containers
        .filter(({ name, state }) => name === container && state === "running")
        .sort((a, b) => b.createdAtMs - a.createdAtMs)[0];
      if (newest === undefined) throw new Error(`container ${container} is not running`);
      const dir = join(rootDir, "checkpoints");
      await mkdir(dir, { recursive: true, mode: 0o700 }); // the archives hold the container's memory
      const path = join(dir, `checkpoint-${podName}_${namespace}-${container}-${rfc3339(clock.now())}.tar`);
      await runtime.checkpointContainer(newest.id, path, timeoutSeconds);
      sendJson(response, { items: [path] });
    } catch (err) {
      throw new HttpError(500, `checkpointing of ${about} failed (${messageOf(err)})`);
    }
  };
}

/** @returns seconds, 0 for the runtime's own. Throws HttpError. */
function readTimeout(text: string | undefined): number {
  if (text === undefined) return 0;
  const seconds = Number(text);
  // 404 for a bad value is odd, and the reference's.
  if (!/^[+-]?\d+$/.test(text) || Math.abs(seconds) > timeoutSecondsMax) {
    throw new HttpError(404, "cannot parse value of timeout parameter");
  }
  if (seconds < 0) throw new HttpError(500, "the timeout must not be negative");
  return seconds === 0 ? 0 : Math.max(seconds, timeoutSecondsMin);
}
