import { ifThere } from "../../lib/errors.ts";
import type { RuntimeEvent } from "../port.ts";
import { type RuntimeCalls, runtimeService } from "./calls.ts";
import type { CRIChannel } from "./client.ts";
import { type Envelope, eventFilters, msOf, readEnvelope } from "./containerd-events.ts";
import { containerSummary, sandboxSummary } from "./convert.ts";
import type { EventSource } from "./events.ts";
import type { PodIDs, PodObject } from "./pod-ids.ts";
import { loadProto, type ProtoPackage } from "../../lib/grpc/proto.ts";
import type { WireContainerEvent } from "./wire.ts";

export interface EventSourceOptions {
  channel: CRIChannel;
  proto: ProtoPackage;
  calls: RuntimeCalls;
  ids: PodIDs;
  ping(): Promise<unknown>;
}

const eventKinds: Readonly<Record<string, RuntimeEvent["kind"]>> = {
  CONTAINER_CREATED_EVENT: "created",
  CONTAINER_STARTED_EVENT: "started",
  CONTAINER_STOPPED_EVENT: "exited",
  CONTAINER_DELETED_EVENT: "deleted",
};

/** The two event streams of one runtime socket, and what it takes to make sense of them. */
export function createEventSource({ channel, proto, calls, ids, ping }: EventSourceOptions): EventSource {
  const eventFromCRI = (event: WireContainerEvent): RuntimeEvent => {
    const { container_id: containerID, pod_sandbox_status: sandbox, created_at: createdAtNs } = event;
    const kind = eventKinds[event.container_event_type] ?? "unknown";
    const podUID = sandbox?.metadata?.uid ?? ids.get(containerID)?.podUID;
    if (kind === "deleted") ids.delete(containerID);
    return { kind, podUID, containerID, createdAtMs: msOf(0, createdAtNs) };
  };
  return {
    streamCRI: async (onEvent, signal) =>
      await channel.stream<WireContainerEvent>(
        proto,
        runtimeService,
        "GetContainerEvents",
        {},
        (event) => onEvent(eventFromCRI(event)),
        signal,
      ),
    streamContainerd: async (onEvent, signal) => {
      const events = await loadProto("containerd-events.proto");
      return await channel.stream<Envelope>(
        events,
        "containerd.services.events.v1.Events",
        "Subscribe",
        { filters: eventFilters },
        (envelope) => {
          const event = readEnvelope(events, envelope);
          if (event !== undefined) onEvent(event);
        },
        signal,
      );
    },
    ping: async () => {
      await ping();
    },
    hasEnded: async (id, kind) => {
      if (kind === "sandbox") return (await ifThere(calls.sandboxStatus(id)))?.state !== "SANDBOX_READY";
      const status = await ifThere(calls.containerStatus(id));
      return status === undefined || status.state === "CONTAINER_EXITED";
    },
    lookUp: async (id): Promise<PodObject | undefined> => {
      const [sandboxes, containers] = await Promise.all([calls.listSandboxes({ id }), calls.listContainers({ id })]);
      const [sandbox] = sandboxes.map(sandboxSummary);
      if (sandbox !== undefined) return { podUID: sandbox.podUID, kind: "sandbox" };
      const [container] = containers.map(containerSummary);
      return container === undefined ? undefined : { podUID: container.podUID, kind: "container" };
    },
  };
}
