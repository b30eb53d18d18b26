import type { Clock } from "../../lib/clock.ts";
import { type Exchange, type Handler, HttpError } from "../port.ts";
import { plainError, sendText } from "../respond.ts";

// Go's default for CPU profiles.
const cpuSecondsDefault = 30;
// V8 can only record what is allocated while it looks.
const heapSecondsDefault = 5;
/** A longer recording would only hold up the next. */
const secondsMax = 300;

const about: Readonly<Record<string, string>> = {
  allocs: "what is allocated meanwhile, freed or not (?seconds=5)",
  block: "waiting for locks: there are none here",
  cmdline: "the command line",
  goroutine: "what the event loop waits for",
  heap: "what is allocated meanwhile and not freed (?seconds=5); ?debug=1: memory in use",
  mutex: "contended locks: there are none here",
  profile: "where the CPU's time goes (?seconds=30)",
  symbol: "names of addresses: profiles have them already",
  threadcreate: "who started threads: not recorded here",
  trace: "execution trace: not recorded here",
};

/**
 * Serves /debug/pprof/. Profiles are V8's, in the format that `go tool pprof` reads. One is recorded at a time, so that
 * asking often costs no more than asking once.
 *
 * @param args the command line
 */
export function createPprofHandler({ clock, args }: { clock: Clock; args: readonly string[] }): Handler {
  let isRecording = false;
  const record = async ({ response, signal }: Exchange, run: (signal: AbortSignal) => Promise<Buffer>) => {
    if (isRecording) throw plainError(500, "a profile is being recorded already: try again when it is done");
    isRecording = true;
    try {
      const profile = await run(signal);
      response.writeHead(200, {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": `attachment; filename="profile"`,
        "X-Content-Type-Options": "nosniff",
      });
      response.end(profile);
    } finally {
      isRecording = false;
    }
  };
  return async (exchange) => {
    const { params, query, response } = exchange;
    const name = params["profile"] ?? "";
    const durationMs = (fallback: number) => readSeconds(query.get("seconds"), fallback) * 1000;
    switch (name) {
      case "":
        sendText(response, 200, indexText());
        return;
      case "cmdline":
        sendText(response, 200, args.join("\0"));
        return;
      case "goroutine":
        sendText(response, 200, waitingText());
        return;
      case "symbol":
        sendText(response, 200, "num_symbols: 0\n");
        return;
      case "profile": {
        const { profileCpu } = await import("./profiler.ts");
        await record(exchange, (signal) => profileCpu(durationMs(cpuSecondsDefault), clock, signal));
        return;
      }
      case "heap":
      case "allocs": {
        if (Number(query.get("debug") ?? 0) > 0) {
          sendText(response, 200, memoryText());
          return;
        }
        const { profileHeap } = await import("./profiler.ts");
        const ms = durationMs(heapSecondsDefault);
        await record(exchange, (signal) => profileHeap(ms, name === "allocs", clock, signal));
        return;
      }
      default: {
        const text = Object.hasOwn(about, name) ? about[name] : undefined;
        if (text === undefined) throw new HttpError(404, "Unknown profile\n");
        sendText(response, 200, `${name}: ${text}\n`);
      }
    }
  };
}

function readSeconds(text: string | null, fallback: number): number {
  const seconds = Number(text ?? "");
  return Number.isFinite(seconds) && seconds > 0 ? Math.min(seconds, secondsMax) : fallback;
}

function indexText(): string {
  const lines = Object.entries(about).map(([name, text]) => `${name.padEnd(12)} ${text}\n`);
  return `/debug/pprof/\n\n${lines.join("")}`;
}

function waitingText(): string {
  const counts = new Map<string, number>();
  for (const name of process.getActiveResourcesInfo()) counts.set(name, (counts.get(name) ?? 0) + 1);
  const lines = [...counts].sort(([, a], [, b]) => b - a).map(([name, count]) => `${count} ${name}\n`);
  return `goroutine: there are none here; the event loop waits for:\n${lines.join("")}`;
}

function memoryText(): string {
  const lines = Object.entries(process.memoryUsage()).map(([name, bytes]) => `${name} ${bytes}\n`);
  return `memory in use, bytes:\n${lines.join("")}`;
}
