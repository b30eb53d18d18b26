import type { Container, Pod } from "../kube/types.ts";
import { containerHash } from "./container-hash.ts";

/** Annotations by which a container tells its story to the next agent process; names as the reference writes them. */
export const annotations = {
  hash: "io.kubernetes.container.hash",
  restartCount: "io.kubernetes.container.restartCount",
  terminationMessagePath: "io.kubernetes.container.terminationMessagePath",
  terminationMessagePolicy: "io.kubernetes.container.terminationMessagePolicy",
  podTerminationGracePeriod: "io.kubernetes.pod.terminationGracePeriod",
  podDeletionGracePeriod: "io.kubernetes.pod.deletionGracePeriod",
  preStopHandler: "io.kubernetes.container.preStopHandler",
  ports: "io.kubernetes.container.ports",
} as const;

/** The annotations of one instance of a container. */
export function containerAnnotations(pod: Pod, container: Container, restartCount: number): Record<string, string> {
  const { terminationGracePeriodSeconds } = pod.spec;
  const { deletionGracePeriodSeconds } = pod.metadata;
  const preStop = container.lifecycle?.preStop;
  return {
    [annotations.hash]: containerHash(container),
    [annotations.restartCount]: String(restartCount),
    [annotations.terminationMessagePath]: container.terminationMessagePath ?? "",
    [annotations.terminationMessagePolicy]: container.terminationMessagePolicy ?? "",
    ...(terminationGracePeriodSeconds === undefined
      ? {}
      : { [annotations.podTerminationGracePeriod]: String(terminationGracePeriodSeconds) }),
    ...(deletionGracePeriodSeconds === undefined
      ? {}
      : { [annotations.podDeletionGracePeriod]: String(deletionGracePeriodSeconds) }),
    ...(preStop === undefined ? {} : { [annotations.preStopHandler]: JSON.stringify(preStop) }),
    ...(container.ports === undefined || container.ports.length === 0
      ? {}
      : { [annotations.ports]: JSON.stringify(container.ports) }),
  };
}

/** Restart count that a container was made with. */
export function restartCountOf(status: { annotations: Record<string, string>; attempt: number }): number {
  const count = Number.parseInt(status.annotations[annotations.restartCount] ?? "", 10);
  return Number.isSafeInteger(count) && count >= 0 ? count : status.attempt;
}
