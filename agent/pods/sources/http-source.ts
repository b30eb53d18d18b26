import type { Clock } from "../../lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { Loop } from "../../lib/loop.ts";
import { type Headers, httpGet } from "./http-get.ts";
import { parsePods } from "./parse.ts";
import type { Deliver } from "./port.ts";
import { buildStaticPod, type StaticPodOptions } from "./static-pod.ts";

export interface HTTPSourceOptions extends StaticPodOptions {
  /** staticPodURL. It may hold a password: it is never shown. */
  url: string;
  /** staticPodURLHeader. */
  headers: Headers;
  /** httpCheckFrequency. */
  checkMs: number;
  deliver: Deliver;
  /** The answer cannot be used; one line. Also told to the log. */
  onProblem(message: string): void;
  clock: Clock;
  log: Logger;
}

/**
 * Delivers the pods that a URL answers with (a Pod or a PodList, JSON or YAML) whenever the answer changes, until `signal`
 * aborts. An answer that is no good changes nothing; an empty one means that there are no pods. Never rejects.
 */
export async function runHTTPSource(options: HTTPSourceOptions, signal: AbortSignal): Promise<void> {
  const { url, headers, checkMs, deliver, onProblem, clock, log } = options;
  let last: Buffer | undefined;
  let reported = "";
  const report = (message: string) => {
    if (message === reported) return;
    reported = message;
    log.warn({ err: message }, "static pods of staticPodURL not read, those known stay; trying again");
  };
  const loop = new Loop({
    clock,
    resyncMs: checkMs,
    retryMs: () => checkMs,
    onError: (err) => report(messageOf(err)),
    pass: async () => {
      const { status, body } = await httpGet(url, headers, signal);
      if (status !== 200) throw new AgentError("Unavailable", `the answer is HTTP ${status}`);
      reported = "";
      if (last?.equals(body) === true) return undefined;
      last = body;
      try {
        const { pods, warnings } = body.length === 0 ? { pods: [], warnings: [] } : parsePods(body.toString("utf8"));
        for (const warning of warnings) log.warn({ warning }, "static pods of staticPodURL");
        const seenAtMs = clock.now();
        deliver(pods.map((pod) => buildStaticPod(pod, { source: "http", origin: url }, options, seenAtMs)));
      } catch (err) {
        if (!hasCode(err, "Invalid")) throw err;
        report(err.message);
        onProblem(`static pods of staticPodURL are not used: ${err.message}`);
      }
      return undefined;
    },
  });
  await loop.run(signal);
}
