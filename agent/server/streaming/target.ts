import type { Container, Pod } from "../../kube/types.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import type { Runtime, StreamingRequest } from "../../runtime/port.ts";
import { HttpError, type ServedPods } from "../port.ts";

type Params = Readonly<Record<string, string>>;

/** The pod that a request names. Throws HttpError 404. */
export function podOf(pods: ServedPods, params: Params): Pod {
  const pod = pods.find(params.namespace ?? "", params.pod ?? "");
  if (pod === undefined) throw new HttpError(404, "pod does not exist");
  return pod;
}

/**
 * The ID of the pod's running container of that name. Rejects with HttpError 500, as the reference does, and says so if the
 * container has ended.
 */
export async function containerOf(runtime: Pick<Runtime, "list">, pod: Pod, name: string): Promise<string> {
  const { containers } = await asking(runtime.list(pod.metadata.uid));
  const instances = containers.filter((container) => container.name === name);
  const [newest] = instances.filter(({ state }) => state === "running").sort((a, b) => b.createdAtMs - a.createdAtMs);
  if (newest !== undefined) return newest.id;
  const hasEnded = instances.some(({ state }) => state === "exited");
  throw new HttpError(500, `container not found ("${name}")${hasEnded ? ", it has ended" : ""}`);
}

/** The ID of the pod's newest sandbox that is ready. Rejects with HttpError 500. */
export async function sandboxOf(runtime: Pick<Runtime, "list">, pod: Pod): Promise<string> {
  const { sandboxes } = await asking(runtime.list(pod.metadata.uid));
  const [newest] = sandboxes
    .filter(({ ready }) => ready)
    .sort((a, b) => b.attempt - a.attempt || b.createdAtMs - a.createdAtMs);
  if (newest === undefined) {
    throw new HttpError(500, `pod not found ("${pod.metadata.name}_${pod.metadata.namespace}"): it has no sandbox`);
  }
  return newest.id;
}

/** Whether a container was made with a terminal: attaching to it cannot choose. */
export function hasTerminal(pod: Pod, name: string): boolean {
  const { containers, initContainers = [], ephemeralContainers = [] } = pod.spec;
  const all: readonly Pick<Container, "name" | "tty">[] = [...containers, ...initContainers, ...ephemeralContainers];
  return all.find((container) => container.name === name)?.tty ?? false;
}

/** A session's URL at the runtime. Rejects with HttpError. */
export async function sessionURL(runtime: Pick<Runtime, "streamingURL">, request: StreamingRequest): Promise<string> {
  return await asking(runtime.streamingURL(request));
}

// How long the runtime keeps a session's URL that nobody fetches: by then there is room for another one.
const retryAfterSeconds = "60";

/** Translates what the runtime rejects with: its word is what a person gets to read. */
async function asking<T>(call: Promise<T>): Promise<T> {
  try {
    return await call;
  } catch (err) {
    if (hasCode(err, "NotFound")) throw new HttpError(404, err.message);
    if (hasCode(err, "TooManyRequests")) throw new HttpError(429, err.message, { "Retry-After": retryAfterSeconds });
    throw new HttpError(500, messageOf(err));
  }
}
