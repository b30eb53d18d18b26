import type { Pod } from "../../kube/types.ts";
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
  /** The answer, or one of its pods, cannot be used; one line. Also told to the log. */
  onProblem(message: string): void;
  clock: Clock;
  log: Logger;
}

/**
 * Delivers the pods that a URL answers with (a Pod or a PodList, JSON or YAML) whenever the answer changes, until `signal`
 * aborts. One bad pod of a list holds up no other, and what it was before stays; an answer of which nothing can be used
 * changes nothing; an empty one means that there are no pods. Never rejects.
 */
export async function runHTTPSource(options: HTTPSourceOptions, signal: AbortSignal): Promise<void> {
  const { url, headers, checkMs, clock, log } = options;
  const source = new HTTPSource(options);
  let last: Buffer | undefined;
  let reported = "";
  const loop = new Loop({
    clock,
    resyncMs: checkMs,
    retryMs: () => checkMs,
    onError: (err) => {
      const message = messageOf(err);
      if (message === reported) return;
      reported = message;
      log.warn({ err: message }, "static pods of staticPodURL not read, those known stay; trying again");
    },
    pass: async () => {
      const { status, body } = await httpGet(url, headers, signal);
      if (status !== 200) throw new AgentError("Unavailable", `the answer is HTTP ${status}`);
      reported = "";
      if (last?.equals(body) === true) return undefined;
      last = body;
      source.take(body.toString("utf8"));
      return undefined;
    },
  });
  await loop.run(signal);
}

class HTTPSource {
  readonly #options: HTTPSourceOptions;
  /** By `namespace/name` of their manifests. */
  #delivered: ReadonlyMap<string, Pod> = new Map();
  #problems: ReadonlySet<string> = new Set();

  constructor(options: HTTPSourceOptions) {
    this.#options = options;
  }

  /** The URL answers with something new. */
  take(text: string): void {
    const { clock, deliver, log, onProblem } = this.#options;
    const { pods, bad, problems, warnings } = readAnswer(text, this.#options, clock.now());
    for (const warning of warnings) log.warn({ warning }, "static pods of staticPodURL");
    for (const problem of new Set(problems).difference(this.#problems)) {
      log.warn({ problem }, "answer of staticPodURL not used as a whole");
      onProblem(problem);
    }
    this.#problems = new Set(problems);
    if (pods.length === 0 && problems.length > 0) return;
    const good = new Map(pods.map(({ key, pod }) => [key, pod]));
    const former = [...new Set(bad)].filter((key) => !good.has(key)).flatMap((key) => this.#delivered.get(key) ?? []);
    this.#delivered = new Map([...[...this.#delivered].filter(([, pod]) => former.includes(pod)), ...good]);
    deliver([...pods.map(({ pod }) => pod), ...former]);
  }
}

interface ReadAnswer {
  /** Keys are `namespace/name` of the manifest. */
  pods: { key: string; pod: Pod }[];
  /** Keys of those that make no sense. */
  bad: string[];
  /** One line each. */
  problems: string[];
  warnings: string[];
}

function readAnswer(text: string, options: StaticPodOptions & { url: string }, seenAtMs: number): ReadAnswer {
  const answer: ReadAnswer = { pods: [], bad: [], problems: [], warnings: [] };
  if (text === "") return answer;
  try {
    const { listed, warnings } = parsePods(text);
    answer.warnings.push(...warnings);
    for (const { key, manifest } of listed) {
      const pod = "problem" in manifest ? manifest : builtOrProblem(manifest, options, seenAtMs);
      if (!("problem" in pod)) answer.pods.push({ key, pod });
      else {
        answer.bad.push(key);
        answer.problems.push(`static pod ${key} of staticPodURL is not used: ${pod.problem}`);
      }
    }
  } catch (err) {
    if (!hasCode(err, "Invalid")) throw err;
    answer.problems.push(`static pods of staticPodURL are not used: ${err.message}`);
  }
  return answer;
}

function builtOrProblem(
  manifest: Pod,
  options: StaticPodOptions & { url: string },
  seenAtMs: number,
): Pod | { problem: string } {
  try {
    return buildStaticPod(manifest, { source: "http", origin: options.url }, options, seenAtMs);
  } catch (err) {
    if (!hasCode(err, "Invalid")) throw err;
    return { problem: err.message };
  }
}
