import { isObject } from "../../lib/json.ts";
import type { PullProgress } from "../port.ts";
import { fieldsOf, parseJSON, textOf } from "./answers.ts";

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
  const fields = parseJSON(line);
  if (!isObject(fields)) return undefined;
  const progress = fieldsOf(fields["progressDetail"]);
  return {
    id: textOf(fields["id"]),
    status: textOf(fields["status"]),
    currentBytes: numberOf(progress["current"]),
    totalBytes: numberOf(progress["total"]),
    error: errorOf(fields),
  };
}

function errorOf(fields: Record<string, unknown>): string | undefined {
  const detail = textOf(fieldsOf(fields["errorDetail"])["message"]);
  if (detail !== "") return detail;
  if (fields["error"] === undefined && fields["errorDetail"] === undefined) return undefined;
  return textOf(fields["error"]) || "the daemon does not say why";
}

interface Layer {
  /** What was said of it last: status and bytes. */
  said: string;
  isDone: boolean;
  /** Nothing comes from the registry for it now, as far as the daemon tells. */
  isHeldUp: boolean;
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

// What a layer waits for is the daemon: that has some downloads at once for everybody who pulls, and says "Waiting" but once;
// what is downloaded is checked and unpacked, one layer after the other.
const statusesHeldUp = new Set(["Waiting", "Verifying Checksum", "Download complete", "Extracting"]);

/** What a message told: something new of a layer, what was known of one, or something else. */
export type ToldOf = "progress" | "nothing" | "other";

/** Adds up what the messages of one pull tell about its layers. */
export class PullTracker {
  readonly #layers = new Map<string, Layer>();

  take({ id, status, currentBytes, totalBytes }: PullMessage): ToldOf {
    if (id === "" || !(statusesOfLayers.has(status) || status.startsWith("Retrying in "))) return "other";
    const layer = this.#layers.get(id) ?? newLayer();
    this.#layers.set(id, layer);
    // A daemon with containerd's image store repeats itself ten times a second, whether anything moves or not.
    const said = `${status} ${currentBytes}`;
    if (said === layer.said) return "nothing";
    layer.said = said;
    layer.isHeldUp = statusesHeldUp.has(status);
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
    return "progress";
  }

  /** True if all that is left to do waits for the daemon itself: a slot to download in, or its disk. */
  get isHeldUp(): boolean {
    const left = [...this.#layers.values()].filter(({ isDone }) => !isDone);
    return left.length > 0 && left.every(({ isHeldUp }) => isHeldUp);
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

function newLayer(): Layer {
  return { said: "", isDone: false, isHeldUp: false, downloadedBytes: 0, totalBytes: 0 };
}

function numberOf(value: unknown): number {
  return typeof value === "number" && value > 0 ? value : 0;
}
