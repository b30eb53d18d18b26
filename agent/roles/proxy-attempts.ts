import type { EventRecorder } from "../kube/port.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";
import type { Proxy } from "../proxy/proxy.ts";

interface ProxyAttemptsDeps {
  readonly nodeName: string;
  readonly recorder: EventRecorder;
  readonly clock: Clock;
  readonly log: Logger;
}

// What is held up, such as the lock of iptables, passes in seconds; what this machine cannot do stays, and is looked at seldom.
const retryBaseMs = 5_000;
const retryMaxMs = 300_000;

/**
 * The proxy beside the kubelet role: pods must go on when services cannot be programmed, and what the proxy waits for may be a
 * pod of this node. So a failure is told, health says so, and the proxy is tried again.
 */
export class ProxyAttempts {
  readonly #proxy: Pick<Proxy, "run" | "stats">;
  readonly #deps: ProxyAttemptsDeps;
  #failures = 0;

  constructor(proxy: Pick<Proxy, "run" | "stats">, deps: ProxyAttemptsDeps) {
    this.#proxy = proxy;
    this.#deps = deps;
  }

  /** The last attempt failed, and none has come as far as programming services since. */
  hasFailed(): boolean {
    return this.#failures > 0 && this.#proxy.stats().length === 0;
  }

  /** Runs the proxy until `signal` aborts. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { nodeName, recorder, clock, log } = this.#deps;
    const about = { kind: "Node", name: nodeName, uid: nodeName };
    while (!signal.aborted) {
      const startedAtMs = clock.monotonic();
      try {
        await this.#proxy.run(signal);
      } catch (err) {
        if (signal.aborted) return;
        // It had worked: another kind of trouble, which may pass soon.
        if (clock.monotonic() - startedAtMs > 2 * retryMaxMs) this.#failures = 0;
        this.#failures += 1;
        const message = `the service proxy cannot run on this node: ${messageOf(err)}`;
        const retryMs = backoffMs(this.#failures, { baseMs: retryBaseMs, maxMs: retryMaxMs });
        log.error({ err: messageOf(err), retryMs }, "the service proxy failed; trying again");
        recorder.event(about, "Warning", "FailedToStartProxy", message, "StartKubeProxy");
        await clock.sleep(retryMs, signal).catch(ignoreAbort);
      }
    }
  }
}
