import type { Clock } from "../lib/clock.ts";
import type {
  ContainerStatus,
  ContainerSummary,
  PodSnapshot,
  RuntimeList,
  SandboxStatus,
  SandboxSummary,
} from "./port.ts";

/** What a snapshot is put together from; a status of what has gone meanwhile is undefined. */
interface Looks {
  clock: Pick<Clock, "now">;
  list(podUID: string): Promise<RuntimeList>;
  sandboxStatus(sandbox: SandboxSummary): Promise<SandboxStatus | undefined>;
  containerStatus(container: ContainerSummary): Promise<ContainerStatus | undefined>;
}

/** Everything that a runtime has of one pod, the newest first. */
export async function takeSnapshot(podUID: string, looks: Looks): Promise<PodSnapshot> {
  const observedAtMs = looks.clock.now();
  const list = await looks.list(podUID);
  const [sandboxes, containers] = await Promise.all([
    Promise.all(list.sandboxes.map(async (sandbox) => await looks.sandboxStatus(sandbox))),
    Promise.all(list.containers.map(async (container) => await looks.containerStatus(container))),
  ]);
  return {
    podUID,
    observedAtMs,
    sandboxes: sandboxes
      .filter((sandbox) => sandbox !== undefined)
      .sort((a, b) => b.attempt - a.attempt || b.createdAtMs - a.createdAtMs),
    containers: containers
      .filter((container) => container !== undefined)
      .sort((a, b) => b.createdAtMs - a.createdAtMs || b.attempt - a.attempt),
  };
}
