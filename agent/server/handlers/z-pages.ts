import { randomInt } from "node:crypto";
import type { Clock } from "../../lib/clock.ts";
import { rfc3339 } from "../../lib/rfc3339.ts";
import type { Exchange, Handler } from "../port.ts";
import { sendText } from "../respond.ts";
import { formatFor, type ZPageFormat, zPageType } from "./negotiation.ts";

/** Whose pages these are. */
export type Component = "kubelet" | "kube-proxy";

export interface StatuszOptions {
  readonly component?: Component;
  readonly clock: Clock;
  /** Unix ms at which the agent started. */
  readonly startedAtMs: number;
  /** The Kubernetes version that we stand in for, such as `v1.36.2`. */
  readonly version: string;
  /** Paths that are served, for people who look for them. */
  readonly paths: readonly string[];
}

/** Serves /statusz: what runs here and since when. */
export function createStatuszHandler(options: StatuszOptions): Handler {
  const { clock, startedAtMs, version, paths, component = "kubelet" } = options;
  const binaryVersion = version.replace(/^v/, "");
  return async (exchange) => {
    const format = formatFor(exchange.request, "Statusz");
    const uptimeSeconds = Math.max(0, Math.floor((clock.now() - startedAtMs) / 1000));
    const startTime = rfc3339(startedAtMs);
    const firstSegments = [...new Set(paths.map((path) => `/${path.split("/")[1]}`))].sort();
    // The reference tells its language's version; ours is Node's.
    const runtimeVersion = `node ${process.version}`;
    await sendZPage(
      exchange,
      { component, kind: "Statusz", format },
      {
        lines: [
          ["Started", new Date(startedAtMs).toUTCString()],
          ["Up", uptimeText(uptimeSeconds)],
          ["Go version", runtimeVersion],
          ["Binary version", binaryVersion],
          ["Paths", firstSegments.join(" ")],
        ],
        object: { startTime, uptimeSeconds, goVersion: runtimeVersion, binaryVersion, paths: firstSegments },
      },
    );
  };
}

/** Serves /flagz. @param flags values by name, without those that hold secrets: for these `classified` stands */
export function createFlagzHandler(flags: ReadonlyMap<string, string>, component: Component = "kubelet"): Handler {
  const sorted = [...flags].sort(([a], [b]) => (a < b ? -1 : 1));
  return async (exchange) => {
    const format = formatFor(exchange.request, "Flagz");
    const page = { lines: sorted, object: { flags: Object.fromEntries(sorted) } };
    await sendZPage(exchange, { component, kind: "Flagz", format }, page);
  };
}

interface ZPage {
  lines: readonly (readonly [name: string, value: string])[];
  object: object;
}

// Programs that parse the text break at the first try, and so learn to ask for the structured form.
const separators = [":", ": ", "=", " "];

async function sendZPage(
  { response }: Exchange,
  { component, kind, format }: { component: Component; kind: string; format: ZPageFormat },
  page: ZPage,
): Promise<void> {
  if (format.kind === "text") {
    const separator = separators[randomInt(separators.length)] ?? ":";
    const warning =
      "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees " +
      "and is for debugging purposes only.";
    const head = `\n${component} ${kind.toLowerCase()}\n${warning}\n\n`;
    sendText(response, 200, head + page.lines.map(([name, value]) => `${name}${separator}${value}\n`).join(""));
    return;
  }
  const { version, isDeprecated } = format;
  const object = { ...zPageType(kind, version), metadata: { name: component }, ...page.object };
  const warning = `299 - "config.k8s.io/${version} ${kind} is deprecated: use v1beta1"`;
  const headers = isDeprecated ? { Warning: warning } : {};
  if (format.kind === "json") {
    sendText(response, 200, `${JSON.stringify(object)}\n`, { "Content-Type": "application/json", ...headers });
  } else {
    const { stringify } = await import("yaml"); // rarely wanted, and costs memory
    sendText(response, 200, stringify(object), { "Content-Type": "application/yaml", ...headers });
  }
}

function uptimeText(seconds: number): string {
  const pad = (value: number) => String(value).padStart(2, "0");
  const hours = Math.floor(seconds / 3600);
  return `${hours} hr ${pad(Math.floor(seconds / 60) % 60)} min ${pad(seconds % 60)} sec`;
}
