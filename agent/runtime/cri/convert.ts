import type {
  ContainerConfig,
  ContainerStateName,
  ContainerStatus,
  ContainerSummary,
  IDMapping,
  ImageAuth,
  ImageInfo,
  LinuxResources,
  Mount,
  NamespaceMode,
  NamespaceOptions,
  PodSandboxConfig,
  RuntimeCondition,
  RuntimeStatus,
  SandboxStatus,
  SandboxSummary,
  SecurityProfile,
} from "../port.ts";
import type {
  Int64,
  WireContainer,
  WireContainerStatus,
  WireIDMapping,
  WireImage,
  WireLinuxResources,
  WireMount,
  WirePodSandbox,
  WirePodSandboxStatus,
  WireStatusResponse,
} from "./wire.ts";

// Labels that tie a runtime object to its pod; every CRI client of Kubernetes sets them.
export const podUIDLabel = "io.kubernetes.pod.uid";
const podNameLabel = "io.kubernetes.pod.name";
const podNamespaceLabel = "io.kubernetes.pod.namespace";

// ---- CRI → ours ---------------------------------------------------------------------------------------------

/** CRI nanoseconds since 1970 to whole milliseconds; zero and negative (Go's zero time) mean "not yet" and give 0. */
export function msFromNanos(nanos: Int64): number {
  const digits = String(nanos);
  // Cutting decimal digits keeps all 64 bits exact where a double could not.
  return digits.length <= 6 || digits.startsWith("-") ? 0 : Number(digits.slice(0, -6));
}

export function runtimeStatus(response: WireStatusResponse): RuntimeStatus {
  const condition = (type: string): RuntimeCondition => {
    const found = response.status?.conditions.find((c) => c.type === type);
    return found === undefined
      ? { status: false, reason: "Unknown", message: `the container runtime reports no ${type} condition` }
      : { status: found.status, reason: found.reason, message: found.message };
  };
  return {
    runtimeReady: condition("RuntimeReady"),
    networkReady: condition("NetworkReady"),
    handlers: response.runtime_handlers.map(({ name, features }) => ({
      name,
      recursiveReadOnlyMounts: features?.recursive_read_only_mounts ?? false,
      userNamespaces: features?.user_namespaces ?? false,
    })),
    supplementalGroupsPolicy: response.features?.supplemental_groups_policy ?? false,
  };
}

export function sandboxSummary(sandbox: WirePodSandbox): SandboxSummary {
  return {
    id: sandbox.id,
    podUID: sandbox.metadata?.uid ?? "",
    podName: sandbox.metadata?.name ?? "",
    podNamespace: sandbox.metadata?.namespace ?? "",
    attempt: sandbox.metadata?.attempt ?? 0,
    ready: sandbox.state === "SANDBOX_READY",
    createdAtMs: msFromNanos(sandbox.created_at),
    labels: sandbox.labels,
    annotations: sandbox.annotations,
    runtimeHandler: sandbox.runtime_handler,
  };
}

export function sandboxStatus(status: WirePodSandboxStatus): SandboxStatus {
  const summary = sandboxSummary(status);
  const networkMode = namespaceMode(status.linux?.namespaces?.options?.network);
  const { network } = status;
  // Some runtimes go on reporting the address of a dead sandbox, or the host's for the host network: neither is the pod's.
  const ips =
    summary.ready && networkMode !== "NODE" && network !== null && network.ip !== ""
      ? [network.ip, ...network.additional_ips.map(({ ip }) => ip)]
      : [];
  return { ...summary, ips, networkMode };
}

const containerStates: Readonly<Record<string, ContainerStateName>> = {
  CONTAINER_CREATED: "created",
  CONTAINER_RUNNING: "running",
  CONTAINER_EXITED: "exited",
};

export function containerSummary(container: WireContainer): ContainerSummary {
  return summarize(container, container.pod_sandbox_id);
}

function summarize(container: Omit<WireContainer, "pod_sandbox_id">, sandboxID: string): ContainerSummary {
  const { labels } = container;
  return {
    id: container.id,
    sandboxID,
    podUID: labels[podUIDLabel] ?? "",
    podName: labels[podNameLabel] ?? "",
    podNamespace: labels[podNamespaceLabel] ?? "",
    name: container.metadata?.name ?? "",
    attempt: container.metadata?.attempt ?? 0,
    state: containerStates[container.state] ?? "unknown",
    createdAtMs: msFromNanos(container.created_at),
    image: container.image?.user_specified_image || (container.image?.image ?? ""),
    imageRef: container.image_ref,
    labels,
    annotations: container.annotations,
  };
}

/** @param sandboxID the container's sandbox: CRI's status does not name it, its list does */
export function containerStatus(status: WireContainerStatus, sandboxID: string): ContainerStatus {
  const user = status.user?.linux;
  return {
    ...summarize(status, sandboxID),
    startedAtMs: msFromNanos(status.started_at),
    finishedAtMs: msFromNanos(status.finished_at),
    exitCode: status.exit_code,
    reason: status.reason,
    message: status.message,
    logPath: status.log_path,
    mounts: status.mounts.map(mountFromWire),
    resources: resourcesFromWire(status.resources?.linux ?? null),
    user:
      user === undefined || user === null
        ? undefined
        : {
            uid: Number(user.uid),
            gid: Number(user.gid),
            supplementalGroups: user.supplemental_groups.map(Number),
          },
    stopSignal: signalFromWire(status.stop_signal),
  };
}

function mountFromWire(mount: WireMount): Mount {
  const mappings = (list: WireIDMapping[]): IDMapping[] =>
    list.map(({ host_id, container_id, length }) => ({ hostID: host_id, containerID: container_id, length }));
  return {
    containerPath: mount.container_path,
    hostPath: mount.host_path,
    readonly: mount.readonly,
    selinuxRelabel: mount.selinux_relabel,
    propagation:
      mount.propagation === "PROPAGATION_BIDIRECTIONAL"
        ? "BIDIRECTIONAL"
        : mount.propagation === "PROPAGATION_HOST_TO_CONTAINER"
          ? "HOST_TO_CONTAINER"
          : "PRIVATE",
    recursiveReadOnly: mount.recursive_read_only,
    ...(mount.uidMappings.length === 0 ? {} : { uidMappings: mappings(mount.uidMappings) }),
    ...(mount.gidMappings.length === 0 ? {} : { gidMappings: mappings(mount.gidMappings) }),
    ...(mount.image === null || mount.image.image === ""
      ? {}
      : {
          image: {
            image: mount.image.image,
            userSpecifiedImage: mount.image.user_specified_image ?? "",
            runtimeHandler: mount.image.runtime_handler ?? "",
            annotations: mount.image.annotations ?? {},
            imageRef: mount.image.image_ref ?? "",
          },
        }),
    ...(mount.image_sub_path === "" ? {} : { imageSubPath: mount.image_sub_path }),
  };
}

function resourcesFromWire(wire: WireLinuxResources | null): LinuxResources | undefined {
  if (wire === null) return undefined;
  const resources: LinuxResources = { oomScoreAdj: Number(wire.oom_score_adj) };
  // Zero is proto3's "not said".
  if (Number(wire.cpu_period) !== 0) resources.cpuPeriod = Number(wire.cpu_period);
  if (Number(wire.cpu_quota) !== 0) resources.cpuQuota = Number(wire.cpu_quota);
  if (Number(wire.cpu_shares) !== 0) resources.cpuShares = Number(wire.cpu_shares);
  if (Number(wire.memory_limit_in_bytes) !== 0) resources.memoryLimitBytes = Number(wire.memory_limit_in_bytes);
  if (Number(wire.memory_swap_limit_in_bytes) !== 0) {
    resources.memorySwapLimitBytes = Number(wire.memory_swap_limit_in_bytes);
  }
  if (wire.cpuset_cpus !== "") resources.cpusetCpus = wire.cpuset_cpus;
  if (wire.cpuset_mems !== "") resources.cpusetMems = wire.cpuset_mems;
  if (wire.hugepage_limits.length > 0) {
    resources.hugepageLimits = wire.hugepage_limits.map(({ page_size, limit }) => ({
      pageSize: page_size,
      limit: Number(limit),
    }));
  }
  if (Object.keys(wire.unified).length > 0) resources.unified = wire.unified;
  return resources;
}

export function imageInfo(image: WireImage): ImageInfo {
  return {
    id: image.id,
    repoTags: image.repo_tags,
    repoDigests: image.repo_digests,
    sizeBytes: Number(image.size),
    uid: image.uid === null ? undefined : Number(image.uid.value),
    username: image.username,
    pinned: image.pinned,
  };
}

function namespaceMode(mode: string | undefined): NamespaceMode {
  return mode === "NODE" || mode === "CONTAINER" || mode === "TARGET" ? mode : "POD";
}

/** CRI's enum spells SIGRTMIN+1 as SIGRTMINPLUS1. */
function signalFromWire(signal: string): string | undefined {
  if (signal === "" || signal === "RUNTIME_DEFAULT") return undefined;
  return signal.replace("PLUS", "+").replace("MINUS", "-");
}

// ---- ours → CRI ---------------------------------------------------------------------------------------------

export function sandboxConfigToWire(config: PodSandboxConfig): object {
  const { securityContext: security } = config;
  return {
    metadata: { name: config.name, uid: config.uid, namespace: config.namespace, attempt: config.attempt },
    hostname: config.hostname,
    log_directory: config.logDirectory,
    dns_config: config.dns ?? null,
    port_mappings: config.portMappings.map((port) => ({
      protocol: port.protocol,
      container_port: port.containerPort,
      host_port: port.hostPort,
      host_ip: port.hostIP,
    })),
    labels: config.labels,
    annotations: config.annotations,
    linux: {
      cgroup_parent: config.cgroupParent,
      sysctls: config.sysctls,
      resources: config.resources === undefined ? null : resourcesToWire(config.resources),
      overhead: config.overhead === undefined ? null : resourcesToWire(config.overhead),
      security_context: {
        namespace_options: namespaceOptionsToWire(security.namespaceOptions),
        selinux_options: security.selinux ?? null,
        run_as_user: int64Value(security.runAsUser),
        run_as_group: int64Value(security.runAsGroup),
        readonly_rootfs: security.readonlyRootfs,
        supplemental_groups: security.supplementalGroups,
        supplemental_groups_policy: security.supplementalGroupsPolicy,
        privileged: security.privileged,
        seccomp: profileToWire(security.seccomp),
        apparmor: profileToWire(security.apparmor),
      },
    },
  };
}

export function containerConfigToWire(config: ContainerConfig): object {
  const { securityContext: security } = config;
  return {
    metadata: { name: config.name, attempt: config.attempt },
    image: { image: config.imageRef, user_specified_image: config.userSpecifiedImage },
    command: config.command,
    args: config.args,
    working_dir: config.workingDir,
    envs: config.envs.map(({ key, value }) => ({ key, value: Buffer.from(value) })),
    mounts: config.mounts.map(mountToWire),
    devices: config.devices.map((device) => ({
      container_path: device.containerPath,
      host_path: device.hostPath,
      permissions: device.permissions,
    })),
    CDI_devices: config.cdiDevices.map((name) => ({ name })),
    labels: config.labels,
    annotations: config.annotations,
    log_path: config.logPath,
    stdin: config.stdin,
    stdin_once: config.stdinOnce,
    tty: config.tty,
    linux: {
      resources: resourcesToWire(config.resources),
      security_context: {
        capabilities: {
          add_capabilities: security.capabilities.add,
          drop_capabilities: security.capabilities.drop,
        },
        privileged: security.privileged,
        namespace_options: namespaceOptionsToWire(security.namespaceOptions),
        selinux_options: security.selinux ?? null,
        run_as_user: int64Value(security.runAsUser),
        run_as_group: int64Value(security.runAsGroup),
        run_as_username: security.runAsUsername ?? "",
        readonly_rootfs: security.readonlyRootfs,
        supplemental_groups: security.supplementalGroups,
        supplemental_groups_policy: security.supplementalGroupsPolicy,
        no_new_privs: security.noNewPrivs,
        masked_paths: security.maskedPaths,
        readonly_paths: security.readonlyPaths,
        seccomp: profileToWire(security.seccomp),
        apparmor: profileToWire(security.apparmor),
        // Runtimes that do not know the field above read this older one.
        apparmor_profile: legacyAppArmor(security.apparmor),
      },
    },
    stop_signal: config.stopSignal === undefined ? "RUNTIME_DEFAULT" : signalToWire(config.stopSignal),
  };
}

/** Fields that are absent are not sent: proto3's zero means "keep the runtime's default". */
export function resourcesToWire(resources: LinuxResources): object {
  return {
    cpu_period: resources.cpuPeriod ?? 0,
    cpu_quota: resources.cpuQuota ?? 0,
    cpu_shares: resources.cpuShares ?? 0,
    memory_limit_in_bytes: resources.memoryLimitBytes ?? 0,
    memory_swap_limit_in_bytes: resources.memorySwapLimitBytes ?? 0,
    oom_score_adj: resources.oomScoreAdj ?? 0,
    cpuset_cpus: resources.cpusetCpus ?? "",
    cpuset_mems: resources.cpusetMems ?? "",
    hugepage_limits: (resources.hugepageLimits ?? []).map(({ pageSize, limit }) => ({ page_size: pageSize, limit })),
    unified: resources.unified ?? {},
  };
}

export function authToWire(auth: ImageAuth): object {
  return {
    username: auth.username ?? "",
    password: auth.password ?? "",
    auth: auth.auth ?? "",
    server_address: auth.serverAddress ?? "",
    identity_token: auth.identityToken ?? "",
    registry_token: auth.registryToken ?? "",
  };
}

function mountToWire(mount: Mount): WireMount {
  return {
    container_path: mount.containerPath,
    host_path: mount.hostPath,
    readonly: mount.readonly,
    selinux_relabel: mount.selinuxRelabel,
    propagation: `PROPAGATION_${mount.propagation}`,
    uidMappings: mappingsToWire(mount.uidMappings ?? []),
    gidMappings: mappingsToWire(mount.gidMappings ?? []),
    recursive_read_only: mount.recursiveReadOnly,
    image:
      mount.image === undefined
        ? null
        : {
            image: mount.image.image,
            user_specified_image: mount.image.userSpecifiedImage,
            runtime_handler: mount.image.runtimeHandler,
            annotations: mount.image.annotations,
          },
    image_sub_path: mount.imageSubPath ?? "",
  };
}

function mappingsToWire(mappings: readonly IDMapping[]): WireIDMapping[] {
  return mappings.map(({ hostID, containerID, length }) => ({ host_id: hostID, container_id: containerID, length }));
}

function namespaceOptionsToWire(options: NamespaceOptions): object {
  const { userns } = options;
  return {
    network: options.network,
    pid: options.pid,
    ipc: options.ipc,
    target_id: options.targetID,
    userns_options:
      userns === undefined
        ? null
        : { mode: userns.mode, uids: mappingsToWire(userns.uids), gids: mappingsToWire(userns.gids) },
  };
}

function profileToWire(profile: SecurityProfile | undefined): object | null {
  return profile === undefined ? null : { profile_type: profile.type, localhost_ref: profile.localhostRef };
}

function legacyAppArmor(profile: SecurityProfile | undefined): string {
  if (profile === undefined) return "";
  if (profile.type === "Localhost") return `localhost/${profile.localhostRef}`;
  return profile.type === "Unconfined" ? "unconfined" : "runtime/default";
}

function int64Value(value: number | undefined): { value: number } | null {
  return value === undefined ? null : { value };
}

function signalToWire(signal: string): string {
  return signal.replace("+", "PLUS").replace("-", "MINUS");
}
