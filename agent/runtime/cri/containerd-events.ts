import type { RuntimeEvent } from "../port.ts";
import type { ProtoPackage } from "../../lib/grpc/proto.ts";

/** What one event of containerd's own stream says about a task, in CRI's words. */
export interface TaskEvent {
  kind: RuntimeEvent["kind"];
  /** A container's or a pod sandbox's: to containerd both are containers. */
  containerID: string;
  /** Unix ms; undefined: it does not say. */
  createdAtMs: number | undefined;
}

/** One reply of containerd's Subscribe. */
export interface Envelope {
  timestamp: { seconds: string; nanos: number } | null;
  namespace: string;
  topic: string;
  event: { type_url: string; value: Uint8Array } | null;
}

/**
 * Subscribe filters (any may match): only the ends and starts of CRI's tasks. Exec probes send three events each;
 * two of them are kept off the wire this way.
 */
export const eventFilters: readonly string[] = ["/tasks/start", "/tasks/exit", "/tasks/oom", "/containers/delete"].map(
  (topic) => `namespace==k8s.io,topic=="${topic}"`,
);

/** Reads one envelope; undefined for what is no container's event (an exec that ended, other namespaces, other topics). */
export function readEnvelope(proto: ProtoPackage, envelope: Envelope): TaskEvent | undefined {
  if (envelope.namespace !== "k8s.io" || envelope.event === null) return undefined;
  const { value } = envelope.event;
  const { seconds, nanos } = envelope.timestamp ?? { seconds: "0", nanos: 0 };
  const found = (kind: RuntimeEvent["kind"], event: object) => taskEvent(kind, event, msOf(seconds, nanos));
  switch (envelope.topic) {
    case "/tasks/start":
      return found("started", proto.decode("containerd.services.events.v1.TaskStart", value));
    case "/tasks/oom":
      return found("unknown", proto.decode("containerd.services.events.v1.TaskOOM", value));
    case "/tasks/exit": {
      const exit = proto.decode("containerd.services.events.v1.TaskExit", value);
      // Another process of the container ended (an exec): the container itself still runs.
      if ("id" in exit && "container_id" in exit && exit.id !== exit.container_id) return undefined;
      return found("exited", exit);
    }
    case "/containers/delete":
      return found("deleted", proto.decode("containerd.services.events.v1.ContainerDelete", value));
    default:
      return undefined;
  }
}

/** Unix ms of seconds and nanoseconds, as gRPC gives them; undefined for those that are not set. Pure. */
export function msOf(seconds: string | number, nanos: string | number): number | undefined {
  const ms = Number(seconds) * 1_000 + Number(nanos) / 1e6;
  return ms > 0 ? ms : undefined;
}

function taskEvent(kind: RuntimeEvent["kind"], event: object, createdAtMs: number | undefined): TaskEvent | undefined {
  const id = "container_id" in event ? event.container_id : "id" in event ? event.id : undefined;
  return typeof id === "string" && id !== "" ? { kind, containerID: id, createdAtMs } : undefined;
}
