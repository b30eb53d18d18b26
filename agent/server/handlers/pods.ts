import type { ServerResponse } from "node:http";
import { setImmediate } from "node:timers/promises";
import type { Pod } from "../../kube/types.ts";
import type { ContainerSummary, Runtime, RuntimeList, SandboxSummary } from "../../runtime/port.ts";
import type { Exchange, Handler, ServedPods } from "../port.ts";

/** Serves /pods: the pods that the agent holds. */
export function createPodsHandler(pods: ServedPods): Handler {
  return (exchange) => sendPodList(exchange, podsToShow(pods));
}

/** Serves /runningpods/: what the runtime runs, whether the agent wants it or not. */
export function createRunningPodsHandler(runtime: Pick<Runtime, "list">): Handler {
  return async (exchange) => sendPodList(exchange, runningPods(await runtime.list()));
}

// Static pods have no API server that would know their status.
function* podsToShow(pods: ServedPods): Generator<object> {
  for (const pod of pods.list()) {
    const { apiVersion: _, kind: __, ...shown } = pod;
    const source = pod.metadata.annotations?.[configSource];
    const isStatic = source !== undefined && source !== "api";
    const status = isStatic ? pods.status(pod) : pod.status;
    yield status === undefined ? shown : { ...shown, status };
  }
}

const configSource = "kubernetes.io/config.source";

interface RunningPod {
  metadata: Pick<Pod["metadata"], "name" | "namespace" | "uid">;
  spec: { containers: { name: string; image: string; resources: object }[] };
  status: object;
}

function runningPods({ sandboxes, containers }: RuntimeList): Iterable<RunningPod> {
  const byUID = new Map<string, RunningPod>();
  const podOf = ({ podUID, podName: name, podNamespace: namespace }: ContainerSummary | SandboxSummary) => {
    const found = byUID.get(podUID);
    if (found !== undefined) return found;
    const pod: RunningPod = { metadata: { name, namespace, uid: podUID }, spec: { containers: [] }, status: {} };
    byUID.set(podUID, pod);
    return pod;
  };
  for (const sandbox of sandboxes) if (sandbox.ready) podOf(sandbox);
  for (const container of containers) {
    if (container.state !== "running") continue;
    const { name, image } = container;
    podOf(container).spec.containers.push({ name, image, resources: {} });
  }
  return byUID.values();
}

// About a millisecond of JSON: between two pieces, others get their turn.
const pieceChars = 131_072;

/** Sends a PodList of `items` in pieces, no faster than the client reads. */
async function sendPodList({ response, signal }: Exchange, items: Iterable<object>): Promise<void> {
  response.writeHead(200, { "Content-Type": "application/json" });
  let text = `{"kind":"PodList","apiVersion":"v1","metadata":{},"items":`;
  let separator = "[";
  for (const item of items) {
    text += separator + JSON.stringify(item);
    separator = ",";
    if (text.length < pieceChars) continue;
    await writePiece(response, text, signal);
    text = "";
  }
  response.end(`${text}${separator === "[" ? "null" : "]"}}\n`);
}

async function writePiece(response: ServerResponse, text: string, signal: AbortSignal): Promise<void> {
  if (response.write(text)) await setImmediate();
  else await drained(response);
  signal.throwIfAborted();
}

/** Resolves when the client has read on, or has gone. */
async function drained(response: ServerResponse): Promise<void> {
  if (response.closed || response.destroyed) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const done = () => resolve();
  response.once("drain", done).once("close", done);
  await promise;
  response.off("drain", done).off("close", done);
}
