// Go's units, in milliseconds.
const unitMs: Record<string, number> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  μs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
};

const part = /(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)/y;

// 2^63 ns, the longest time.Duration.
const durationMsMax = 2 ** 63 / 1e6;

/**
 * Parses a duration as Go writes them: `1h2m3.5s`, `-30s`, `0`.
 * @returns milliseconds (with a fraction below 1 ms), or undefined if `text` is no duration
 */
export function parseDuration(text: string): number | undefined {
  const signed = /^([+-]?)(.+)$/.exec(text);
  if (signed === null) return undefined;
  const [, sign, rest = ""] = signed;
  if (rest === "0") return 0;
  let ms = 0;
  part.lastIndex = 0;
  while (part.lastIndex < rest.length) {
    const match = part.exec(rest);
    if (match === null) return undefined;
    ms += Number(match[1]) * (unitMs[match[2] ?? ""] ?? 0);
  }
  ms = Math.round(ms * 1e6) / 1e6; // whole nanoseconds
  if (ms > durationMsMax) return undefined;
  return sign === "-" && ms !== 0 ? -ms : ms;
}

/** Writes milliseconds as Go does: `1h0m0s`, `1m30s`, `100ms`, `0s`. */
export function formatDuration(ms: number): string {
  if (ms < 0) return `-${formatDuration(-ms)}`;
  if (ms === 0) return "0s";
  if (ms < 1e-3) return `${Math.round(ms * 1e6)}ns`;
  if (ms < 1) return `${trimmed(ms * 1e3, 3)}µs`;
  if (ms < 1000) return `${trimmed(ms, 6)}ms`;
  const minutes = Math.floor(ms / 60_000);
  const seconds = `${trimmed((ms - minutes * 60_000) / 1000, 9)}s`;
  if (minutes === 0) return seconds;
  const hours = Math.floor(minutes / 60);
  return hours === 0 ? `${minutes}m${seconds}` : `${hours}h${minutes % 60}m${seconds}`;
}

function trimmed(value: number, decimals: number): string {
  return value.toFixed(decimals).replace(/\.?0+$/, "");
}
