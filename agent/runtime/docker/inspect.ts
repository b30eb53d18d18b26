import { readContainer, readSandbox } from "./labels.ts";
import type {
  ContainerStateName,
  ContainerStatus,
  ContainerSummary,
  LinuxResources,
  Mount,
  NamespaceMode,
  SandboxStatus,
  SandboxSummary,
} from "../port.ts";
import type { WireContainer, WireHostConfig, WireInspect, WireMountPoint, WireState } from "./wire.ts";

/** A sandbox as the list shows it. `ready` is only whether its process runs; a list tells neither its network nor its past. */
export function sandboxSummary(container: WireContainer): SandboxSummary & { networkMode: NamespaceMode } {
  const { portMappings: _, ...identity } = readSandbox(container.Labels ?? {});
  return {
    ...identity,
    id: container.Id,
    ready: isListedRunning(container),
    createdAtMs: (container.Created ?? 0) * 1000,
    networkMode: networkMode(container.HostConfig?.NetworkMode),
  };
}

export function containerSummary(container: WireContainer): ContainerSummary {
  const { logPath: _, image, ...identity } = readContainer(container.Labels ?? {});
  return {
    ...identity,
    id: container.Id,
    state: stateOfName(container.State ?? ""),
    createdAtMs: (container.Created ?? 0) * 1000,
    image: image || (container.Image ?? ""),
    imageRef: container.ImageID ?? "",
  };
}

/** @param ips of its network, as far as it has one: without any, a sandbox with a network of its own is not ready */
export function sandboxStatus(inspect: WireInspect, ips: readonly string[]): SandboxStatus {
  const { portMappings: _, ...identity } = readSandbox(inspect.Config?.Labels ?? {});
  const mode = networkMode(inspect.HostConfig?.NetworkMode);
  const ready = isRunning(inspect.State) && (mode === "NODE" || (ips.length > 0 && !hasEnded(inspect)));
  return {
    ...identity,
    id: inspect.Id,
    ready,
    createdAtMs: parseTime(inspect.Created),
    networkMode: mode,
    ips: ready && mode !== "NODE" ? [...ips] : [],
  };
}

/** @param imageRef the image by its digest in a registry, where it has one; its ID else */
export function containerStatus(inspect: WireInspect, imageRef: string): ContainerStatus {
  const { image, ...identity } = readContainer(inspect.Config?.Labels ?? {});
  const createdAtMs = parseTime(inspect.Created);
  return {
    ...identity,
    id: inspect.Id,
    image: image || (inspect.Config?.Image ?? ""),
    imageRef,
    createdAtMs,
    ...outcome(inspect.State ?? {}, createdAtMs),
    mounts: mountsOf(inspect),
    resources: resourcesOf(inspect.HostConfig ?? {}),
    // Docker does not tell whom a container's first process runs as, once the image has a say in it.
    user: undefined,
    stopSignal: inspect.Config?.StopSignal || undefined,
  };
}

/** True if its process ended, also if somebody started it again since: a sandbox's has a new, empty network namespace then. */
export function hasEnded({ State }: Pick<WireInspect, "State">): boolean {
  return parseTime(State?.FinishedAt) > 0;
}

/** {@link isRunning} of what is in a list. */
export function isListedRunning({ State }: Pick<WireContainer, "State">): boolean {
  return State === "running" || State === "paused";
}

/** True for a sandbox's or container's process that runs, also while it is frozen. */
export function isRunning(state: WireState | null | undefined): boolean {
  return state?.Running === true && state.Restarting !== true;
}

type Outcome = Pick<ContainerStatus, "state" | "startedAtMs" | "finishedAtMs" | "exitCode" | "reason" | "message">;

/**
 * What became of a container. One that could not be started stays "created" for Docker, with an exit code and an
 * error; for a pod it has ended at its creation.
 */
function outcome(state: WireState, createdAtMs: number): Outcome {
  const startedAtMs = parseTime(state.StartedAt);
  const finishedAtMs = parseTime(state.FinishedAt);
  const exitCode = state.ExitCode ?? 0;
  const message = state.Error ?? "";
  if (isRunning(state)) {
    return { state: "running", startedAtMs, finishedAtMs: 0, exitCode: 0, reason: "", message: "" };
  }
  if (finishedAtMs > 0) {
    return { state: "exited", startedAtMs, finishedAtMs, exitCode, reason: exitReason(state), message };
  }
  if (exitCode !== 0 || message !== "") {
    const instants = { startedAtMs: createdAtMs, finishedAtMs: createdAtMs };
    return {
      state: "exited",
      ...instants,
      exitCode: exitCode || startErrorCode,
      reason: "ContainerCannotRun",
      message,
    };
  }
  return { state: "created", startedAtMs: 0, finishedAtMs: 0, exitCode: 0, reason: "", message: "" };
}

// What shells and Docker itself give for a program that cannot be run; for start errors that left no code.
const startErrorCode = 128;

function exitReason({ OOMKilled, ExitCode, StartedAt }: WireState): string {
  // A program that outlives the kernel's kill of one of its processes may end well: the kill is what people must know.
  if (OOMKilled === true) return "OOMKilled";
  if (ExitCode === 0) return "Completed";
  return parseTime(StartedAt) === 0 ? "ContainerCannotRun" : "Error";
}

function stateOfName(state: string): ContainerStateName {
  switch (state) {
    case "created":
      return "created";
    case "running":
    case "paused":
      return "running";
    case "exited":
    case "dead":
    case "removing":
    case "restarting":
      return "exited";
    default:
      return "unknown";
  }
}

function networkMode(mode: string | undefined): NamespaceMode {
  return mode === "host" ? "NODE" : "POD";
}

function mountsOf({ Mounts, HostConfig }: WireInspect): Mount[] {
  const recursive = new Set(
    (HostConfig?.Mounts ?? [])
      .filter(({ BindOptions }) => BindOptions?.ReadOnlyForceRecursive === true)
      .map(({ Target }) => Target),
  );
  return (Mounts ?? [])
    .filter(({ Type }) => Type === "bind")
    .map((mount) => ({
      containerPath: mount.Destination ?? "",
      hostPath: mount.Source ?? "",
      readonly: mount.RW === false,
      selinuxRelabel: false,
      propagation: propagationOf(mount),
      recursiveReadOnly: recursive.has(mount.Destination),
    }));
}

function propagationOf({ Propagation }: WireMountPoint): Mount["propagation"] {
  if (Propagation === "rshared" || Propagation === "shared") return "BIDIRECTIONAL";
  return Propagation === "rslave" || Propagation === "slave" ? "HOST_TO_CONTAINER" : "PRIVATE";
}

/** What the daemon holds, zero being its "not said". */
function resourcesOf(config: WireHostConfig): LinuxResources {
  return {
    oomScoreAdj: config.OomScoreAdj ?? 0,
    ...(config.CpuPeriod ? { cpuPeriod: config.CpuPeriod } : {}),
    ...(config.CpuQuota ? { cpuQuota: config.CpuQuota } : {}),
    ...(config.CpuShares ? { cpuShares: config.CpuShares } : {}),
    ...(config.Memory ? { memoryLimitBytes: config.Memory } : {}),
    ...(config.MemorySwap ? { memorySwapLimitBytes: config.MemorySwap } : {}),
    ...(config.CpusetCpus ? { cpusetCpus: config.CpusetCpus } : {}),
    ...(config.CpusetMems ? { cpusetMems: config.CpusetMems } : {}),
  };
}

/** RFC 3339 to Unix ms; Go's zero time, and what is no time, is 0: not yet. */
function parseTime(text: string | undefined): number {
  const ms = Date.parse(text ?? "");
  return Number.isNaN(ms) || ms < 0 ? 0 : ms;
}
