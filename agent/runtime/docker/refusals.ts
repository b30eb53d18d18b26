import { quantityValue } from "../../kube/quantity.ts";
import { allContainers } from "../../kube/pod-resources.ts";
import type { Pod } from "../../kube/types.ts";
import { AgentError } from "../../lib/errors.ts";
import { knowsRecursiveReadOnly } from "./create-body.ts";
import type { DaemonInfo } from "./daemon.ts";
import { noImageVolumes, noRecursiveReadOnly } from "./mounts.ts";
import { memoryBytesMin, tooLittleMemory } from "./resources.ts";
import { noStrictGroups } from "./security.ts";

/** Something that is not with Docker as it is with a CRI runtime. */
export interface Difference {
  /** What a pod or its owner asks for; one line of Markdown. */
  subject: string;
  /** What comes of it; one line of Markdown. */
  outcome: string;
}

/** One that is settled before the pod starts. */
interface Refusal extends Difference {
  /** Why this pod cannot run, or undefined. */
  refuses: (pod: Pod, daemon: DaemonInfo) => string | undefined;
}

const noUserNamespaceOfItsOwn =
  "hostUsers: false needs a CRI runtime: Docker gives user namespaces to all containers of a daemon or to none";

const refusals: readonly Refusal[] = [
  {
    subject: "`hostUsers: false` (user namespaces, ID-mapped mounts)",
    outcome: "Pod rejected: Docker gives user namespaces to all containers of a daemon or to none.",
    refuses: ({ spec }) => (spec.hostUsers === false ? noUserNamespaceOfItsOwn : undefined),
  },
  {
    subject: "`supplementalGroupsPolicy: Strict`",
    outcome: "Pod rejected: Docker always adds the groups of the image's `/etc/group`.",
    refuses: ({ spec }) => (spec.securityContext?.supplementalGroupsPolicy === "Strict" ? noStrictGroups : undefined),
  },
  {
    subject: "Volumes of type `image`",
    outcome: "Pod rejected: Docker has no stable way to mount an image.",
    refuses: ({ spec }) => {
      const volume = spec.volumes?.find(({ image }) => image !== undefined);
      return volume === undefined ? undefined : `volume "${volume.name}": ${noImageVolumes}`;
    },
  },
  {
    subject: "`recursiveReadOnly: Enabled`",
    outcome:
      "Needs Docker Engine 25 and Linux 5.12; with an older Engine the pod is rejected. `IfPossible` works with any.",
    refuses: (pod, daemon) => {
      if (knowsRecursiveReadOnly(daemon)) return undefined;
      const mount = allContainers(pod)
        .flatMap(({ volumeMounts = [] }) => volumeMounts)
        .find(({ recursiveReadOnly }) => recursiveReadOnly === "Enabled");
      return mount === undefined ? undefined : `volumeMount "${mount.name}": ${noRecursiveReadOnly(daemon)}`;
    },
  },
  {
    subject: "A memory limit below 6 MiB",
    outcome: "Pod rejected: the Docker daemon takes no smaller one.",
    refuses: tooSmall,
  },
];

/** Every difference, those that reject a pod first. The README's table shows this list. */
export const differences: readonly Difference[] = [
  ...refusals,
  {
    subject: "A RuntimeClass",
    outcome:
      "Its handler must be one of the daemon's `runtimes` (`docker info`); else the sandbox is not made, and an event says so.",
  },
  {
    subject: "Privileged containers, capability `ALL`",
    outcome:
      "With Docker Engine 20.10 they do not start where the daemon itself lacks a capability (inside a container); from 23 on they get what there is.",
  },
  {
    subject: "CDI devices",
    outcome:
      'Need Docker Engine 25 with the feature `"cdi"` on; else the container is not made, and its waiting reason says so.',
  },
  {
    subject: "Environment variables that are not UTF-8 text",
    outcome: "The container is not made; its waiting reason names the variable.",
  },
  {
    subject: "Volumes on a node with SELinux",
    outcome:
      "Relabelled by Docker. A path with a colon cannot be; such a container is not made. Read-only ones are so recursively from Engine 25 on.",
  },
  {
    subject: "Pods that cri-dockerd or an old kubelet runs on the same daemon",
    outcome: "Left alone and not taken over, whatever their labels: drain the node before this agent takes its place.",
  },
  {
    subject: "Several nodes on one daemon",
    outcome:
      "Each sees the pods of its own name alone. One that takes another name leaves its pods running: drain it before.",
  },
  {
    subject: "Images that nobody uses, when the disk is full",
    outcome:
      "Those of the whole daemon go, people's own and other nodes' too, unless `imageGCHighThresholdPercent` is 100 on all its nodes.",
  },
  {
    subject: "`docker rename` of a pod's container",
    outcome:
      "It is not taken for the pod's any more, which gets another one; what was renamed ends with the pod's cgroup.",
  },
  {
    subject: "`oom_score_adj` where the agent lacks `CAP_SYS_RESOURCE` (inside a container)",
    outcome:
      "No container gets a lower one than the agent has, as the daemon is taken to lack the capability, too; the log says so.",
  },
  {
    subject: "Pulls of images",
    outcome:
      "Given up and tried again after a minute without progress, or half an hour in which they wait for others' layers.",
  },
  {
    subject: "Checkpoints of containers",
    outcome: "Refused: Docker has them as an experiment only, in a format of its own.",
  },
  {
    subject: "A `hostPath` that contains Docker's data root, or lies in it",
    outcome:
      "Without `mountPropagation` it gets `HostToContainer`: Docker could not unmount its own file systems otherwise.",
  },
  {
    subject: "Huge page limits, swap without a memory limit, the end of all processes when memory is short (cgroup v2)",
    outcome: "Written into the container's cgroup by the agent, right after the start: Docker has no words for them.",
  },
  {
    subject: "Seccomp profile `RuntimeDefault`",
    outcome: "Docker's default profile, or what its administrator set with `--seccomp-profile`.",
  },
  {
    subject: "Hostname",
    outcome: "The same in all containers, but one that a container changes while it runs is changed for itself alone.",
  },
  {
    subject: "The daemon's own defaults (`default-ulimits`, `no-new-privileges`, `default-shm-size`)",
    outcome: "Hold for pods as for all containers of the daemon.",
  },
  {
    subject: "Logs below `/var/log/pods`",
    outcome: "Links to Docker's JSON files: a log collector must read that format. Docker rotates them.",
  },
  {
    subject: "`max-buffer-size` among the daemon's `log-opts`",
    outcome: "Docker refuses any other mode than `non-blocking` then: lines that come too fast are not logged.",
  },
];

/**
 * Why a pod cannot run with this daemon, as far as its spec alone tells; undefined if nothing speaks against it. Pure.
 * What only turns out later is refused then, by the create call.
 */
export function unsupported(pod: Pod, daemon: DaemonInfo): string | undefined {
  for (const { refuses } of refusals) {
    const why = refuses(pod, daemon);
    if (why !== undefined) return why;
  }
  return undefined;
}

function tooSmall(pod: Pod): string | undefined {
  const ofPod = quantityValue(pod.spec.resources?.limits?.["memory"]);
  for (const { name, resources } of allContainers(pod)) {
    const bytes = quantityValue(resources?.limits?.["memory"]) || ofPod;
    if (bytes > 0 && bytes < memoryBytesMin) return `container "${name}": ${tooLittleMemory(bytes)}`;
  }
  return undefined;
}

/** For a configuration that asks for a user namespace all the same. */
export function noUserNamespaces(what: string): AgentError {
  return new AgentError("Unimplemented", `${what}: ${noUserNamespaceOfItsOwn}`);
}

/** For a RuntimeClass whose handler the daemon does not have. */
export function unknownHandler(what: string, handler: string, { runtimes }: Pick<DaemonInfo, "runtimes">): AgentError {
  const known = runtimes.join(", ") || "none";
  return new AgentError(
    "Invalid",
    `${what}: the Docker daemon has no runtime "${handler}" (it has: ${known}); add it to "runtimes" in daemon.json`,
  );
}
