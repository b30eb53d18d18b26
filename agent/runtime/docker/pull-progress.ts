import { isObject } from "../../lib/json.ts";
import type { PullProgress } from "../port.ts";

// A message is a line or two of JSON. More without a newline is no progress of a daemon in its right mind.
const messageBytesMax = 1024 * 1024;

/** One message of a pull's progress stream, as far as it is read here. */
export interface PullMessage {
  /** A layer's ID; of messages about the whole pull, its tag or "". */
  id: string;
  /** "Downloading", "Pull complete", … */
  status: string;
  currentBytes: number;
  totalBytes: number;
  /** The pull has failed, although the request itself has succeeded. */
  error: string | undefined;
}

/** The messages of a progress stream. What is no message is left out; rejects as the stream does, or when a line has no end. */
export async function* pullMessages(stream: AsyncIterable<Buffer | string>): AsyncGenerator<PullMessage> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    rest += typeof chunk === "string" ? chunk : decoder.decode(chunk, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop() ?? "";
    if (rest.length > messageBytesMax) throw new Error("the progress of the pull has a line without an end");
    for (const line of lines) {
      const message = parseMessage(line);
      if (message !== undefined) yield message;
    }
  }
  const last = parseMessage(rest);
  if (last !== undefined) yield last;
}

function parseMessage(line: string): PullMessage | undefined {
  const fields = recordOf(parseJSON(line));
  if (fields === undefined) return undefined;
  const progress = recordOf(fields["progressDetail"]) ?? {};
  return {
    id: textOf(fields["id"]),
    status: textOf(fields["status"]),
    currentBytes: numberOf(progress["current"]),
    totalBytes: numberOf(progress["total"]),
    error: errorOf(fields),
  };
}

function errorOf(fields: Record<string, unknown>): string | undefined {
  const detail = textOf(recordOf(fields["errorDetail"])?.["message"]);
  if (detail !== "") return detail;
  if (fields["error"] === undefined && fields["errorDetail"] === undefined) return undefined;
  return textOf(fields["error"]) || "the daemon does not say why";
}

interface Layer {
  isDone: boolean;
  downloadedBytes: number;
  totalBytes: number;
}

const statusesOfLayers = new Set([
  "Pulling fs layer",
  "Waiting",
  "Downloading",
  "Verifying Checksum",
  "Download complete",
  "Extracting",
  "Pull complete",
  "Already exists",
]);

/** Adds up what the messages of one pull tell about its layers. */
export class PullTracker {
  readonly #layers = new Map<string, Layer>();

  /** @returns false if the message told nothing of a layer */
  take({ id, status, currentBytes, totalBytes }: PullMessage): boolean {
    if (id === "" || !(statusesOfLayers.has(status) || status.startsWith("Retrying in "))) return false;
    const layer = this.#layers.get(id) ?? { isDone: false, downloadedBytes: 0, totalBytes: 0 };
    this.#layers.set(id, layer);
    if (status === "Downloading") {
      layer.downloadedBytes = currentBytes;
      layer.totalBytes = Math.max(totalBytes, currentBytes);
    } else if (status === "Pull complete" || status === "Already exists") {
      layer.isDone = true;
    }
    // What is unpacked was downloaded: small layers tell nothing between.
    if (layer.isDone || status === "Download complete" || status === "Extracting") {
      layer.downloadedBytes = layer.totalBytes;
    }
    return true;
  }

  get progress(): PullProgress {
    const layers = [...this.#layers.values()];
    const sum = (of: (layer: Layer) => number) => layers.reduce((total, layer) => total + of(layer), 0);
    return {
      layers: layers.length,
      layersDone: layers.filter(({ isDone }) => isDone).length,
      downloadedBytes: sum(({ downloadedBytes }) => downloadedBytes),
      totalBytes: sum(({ totalBytes }) => totalBytes),
    };
  }
}

function parseJSON(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function recordOf(value: unknown): Record<string, unknown> | undefined {
  return isObject(value) ? value : undefined;
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function numberOf(value: unknown): number {
  return typeof value === "number" && value > 0 ? value : 0;
}
