import type { Container, LifecycleHandler, Pod } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import { httpGet, httpTarget, type HTTPTarget, isPlainAnswer } from "../probes/http-get.ts";
import type { Runtime } from "../runtime/port.ts";
import type { PodMetrics } from "./metrics.ts";

/** What servers see who is calling; kubelet's own text. */
export const hookUserAgent = "kube-lifecycle/1.36";

export interface HookDeps {
  runtime: Pick<Runtime, "execSync">;
  clock: Clock;
  metrics?: Pick<PodMetrics, "hookFallbacks" | "sleepsCutShort"> | undefined;
  /** An HTTPS hook's server speaks plain HTTP, was asked that way, and has answered. */
  onHTTPFallback(pod: Pod, container: Container, message: string): void;
}

export interface HookTarget {
  pod: Pod;
  container: Container;
  containerID: string;
  /** As the runtime tells it now. */
  podIP: string;
}

/**
 * Carries out a postStart or preStop handler. Rejects with an Error if it failed, or when `signal` aborts. A command that
 * was begun runs on in the container after that.
 */
export async function runHook(
  handler: LifecycleHandler,
  target: HookTarget,
  deps: HookDeps,
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  if (handler.exec !== undefined) await orAborted(runExec(handler.exec.command ?? [], target, deps), signal);
  else if (handler.httpGet !== undefined) await runHTTP(handler.httpGet, target, deps, signal);
  else if (handler.sleep !== undefined) await runSleep(handler.sleep.seconds, deps, signal);
  else throw new Error("invalid handler: it has no exec, httpGet or sleep");
}

async function runSleep(seconds: number, { clock, metrics }: HookDeps, signal: AbortSignal): Promise<void> {
  try {
    await clock.sleep(seconds * 1_000, signal);
  } catch (err) {
    metrics?.sleepsCutShort.inc({});
    throw err;
  }
}

async function runExec(command: readonly string[], { containerID }: HookTarget, { runtime }: HookDeps): Promise<void> {
  const { exitCode, stdout, stderr } = await runtime.execSync(containerID, command, 0);
  if (exitCode === 0) return;
  const output = Buffer.concat([stdout, stderr]).subarray(0, hookOutputBytesMax).toString("utf8");
  throw new Error(`command '${command.join(" ")}' exited with ${exitCode}: ${output}`);
}

// Of a failed command's output this much goes to the log.
const hookOutputBytesMax = 1_024;

// Whatever the server answers is fine, also if it breaks off: only a request that could not be made is a failure.
async function runHTTP(
  action: NonNullable<LifecycleHandler["httpGet"]>,
  { pod, container, podIP }: HookTarget,
  deps: HookDeps,
  signal: AbortSignal,
): Promise<void> {
  const target = httpTarget(action, container, podIP, hookUserAgent);
  try {
    await httpGet(target, { timeoutMs: undefined, signal, clock: deps.clock });
  } catch (err) {
    // Any other complaint comes from a server that does speak TLS: what was meant for that must not be sent in the clear.
    if (!(err instanceof Error) || !isPlainAnswer(err.cause)) throw err;
    await httpGet(withoutTLS(target), { timeoutMs: undefined, signal, clock: deps.clock });
    // Only now: of a hook that failed the failure's own event tells.
    deps.metrics?.hookFallbacks.inc({});
    deps.onHTTPFallback(
      pod,
      container,
      `request to HTTPS lifecycle hook got HTTP response, retry with HTTP succeeded: ${messageOf(err)}`,
    );
  }
}

// What was meant for an encrypted connection stays out of a plain one.
function withoutTLS({ url, headers }: HTTPTarget): HTTPTarget {
  const port = url.port === "" ? "443" : url.port;
  const plain = new URL(url.href);
  plain.protocol = "http:";
  plain.port = port;
  return { url: plain, headers: headers.filter(([name]) => name.toLowerCase() !== "authorization") };
}

async function orAborted(work: Promise<void>, signal: AbortSignal): Promise<void> {
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
