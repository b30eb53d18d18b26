import { backoffMs } from "../lib/backoff.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { CgroupDriver } from "../node/cgroup-names.ts";
import type { Runtime } from "../runtime/port.ts";
import { type OpenRuntimeDeps, openRuntime, type RuntimeSettings } from "./open-runtime.ts";

/** A runtime that has answered, and what it said of itself. */
export interface ConnectedRuntime {
  runtime: Runtime;
  /** "containerd" in container IDs. */
  runtimeName: string;
  /** The driver that the runtime wants; undefined: it cannot say. */
  cgroupDriver: CgroupDriver | undefined;
}

// A runtime that starts together with us takes a second or two. Connecting to a socket that is not there costs nothing.
const retry = { baseMs: 100, maxMs: 1_000 };

export interface ConnectRuntimeDeps extends OpenRuntimeDeps {
  /** Replaced by tests. */
  open?: typeof openRuntime;
}

/**
 * Connects to the container runtime, however long it takes to come up; says so once for each kind of trouble.
 * Rejects only with Invalid (the endpoint can never work) or when `signal` aborts.
 */
export async function connectRuntime(
  settings: RuntimeSettings,
  { open = openRuntime, ...deps }: ConnectRuntimeDeps,
  signal: AbortSignal,
): Promise<ConnectedRuntime> {
  const { clock, log } = deps;
  const { containerRuntimeEndpoint: endpoint } = settings.config;
  let reported = "";
  for (let failures = 1; ; failures += 1) {
    signal.throwIfAborted();
    try {
      return await greet(await open(settings, deps), endpoint, log);
    } catch (err) {
      if (hasCode(err, "Invalid")) throw err;
      const message = messageOf(err);
      if (message !== reported) {
        log.warn({ endpoint, err: message }, "the container runtime does not answer; trying until it does");
      }
      reported = message;
    }
    await clock.sleep(backoffMs(failures, retry), signal);
  }
}

async function greet(runtime: Runtime, endpoint: string, log: Logger): Promise<ConnectedRuntime> {
  try {
    const [{ runtimeName, runtimeVersion }, cgroupDriver] = await Promise.all([
      runtime.version(),
      runtime.cgroupDriver(),
    ]);
    log.info({ endpoint, runtimeName, runtimeVersion, cgroupDriver }, "connected to the container runtime");
    return { runtime, runtimeName, cgroupDriver };
  } catch (err) {
    await runtime.close();
    throw err;
  }
}
