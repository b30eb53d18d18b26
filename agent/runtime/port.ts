import type { Pod } from "../kube/types.ts";

/**
 * The one seam between pods and what runs them. Words are CRI's; shapes are ours. Implementations: cri/, docker/.
 *
 * Contract, tested by one suite for all implementations:
 * - Methods reject with `AgentError` (codes NotFound, AlreadyExists, DeadlineExceeded, Unavailable, Unimplemented, Internal).
 * - stop* and remove* are idempotent: an object that is not there is success.
 * - Each call has its own deadline, derived from `RuntimeOptions.requestTimeoutMs` as the method says; `signal` ends it sooner.
 * - Instants are Unix nanoseconds as bigint in CRI and Unix milliseconds (number) here; 0 means "not yet".
 */
export interface Runtime {
  /** "containerd" in `containerd://<id>`, its version, and the API version. */
  version(): Promise<RuntimeVersion>;
  status(): Promise<RuntimeStatus>;
  /** The cgroup driver that the runtime wants, or undefined if it cannot say. */
  cgroupDriver(): Promise<"systemd" | "cgroupfs" | undefined>;
  updateRuntimeConfig(config: { podCIDR: string }): Promise<void>;

  /**
   * Deadline 2 × requestTimeout.
   *
   * @param onStep hears what it is at, for people, with runtimes that tell: "set up its network"
   * @returns the sandbox ID
   */
  runPodSandbox(config: PodSandboxConfig, runtimeHandler: string, onStep?: (step: string) => void): Promise<string>;
  stopPodSandbox(sandboxID: string): Promise<void>;
  removePodSandbox(sandboxID: string): Promise<void>;
  /** Rejects with NotFound. */
  podSandboxStatus(sandboxID: string): Promise<SandboxStatus>;

  /** @returns the container ID */
  createContainer(sandboxID: string, config: ContainerConfig, sandboxConfig: PodSandboxConfig): Promise<string>;
  startContainer(containerID: string): Promise<void>;
  /** Graceful stop: the stop signal, then SIGKILL after `graceSeconds`. Deadline requestTimeout + grace. */
  stopContainer(containerID: string, graceSeconds: number): Promise<void>;
  removeContainer(containerID: string): Promise<void>;
  /** Rejects with NotFound. */
  containerStatus(containerID: string): Promise<ContainerStatus>;
  updateContainerResources(containerID: string, resources: LinuxResources): Promise<void>;
  /** Tells a runtime that sizes sandboxes by their resources of new ones. Rejects with Unimplemented where it has no use for them. */
  updatePodSandboxResources(sandboxID: string, sizes: Pick<PodSandboxConfig, "resources" | "overhead">): Promise<void>;
  reopenContainerLog(containerID: string): Promise<void>;
  /**
   * Runs a command to its end. When `signal` aborts, the runtime is told to end the command.
   *
   * @param timeoutSeconds 0: no limit; DeadlineExceeded when it passed
   */
  execSync(
    containerID: string,
    command: readonly string[],
    timeoutSeconds: number,
    signal?: AbortSignal,
  ): Promise<ExecSyncResult>;

  /** Every sandbox and container that the runtime knows, or only those of one pod. Two calls, no per-object ones. */
  list(podUID?: string): Promise<RuntimeList>;
  /**
   * Full state of one pod: `list` plus the status of each sandbox and container, newest first. An object that vanishes
   * while we look is left out.
   */
  podSnapshot(podUID: string): Promise<PodSnapshot>;
  /**
   * Wakes: "something about this pod may have changed". `podUID` undefined means anything may have (stream began, or
   * reconnected after a gap). Ends only when `signal` aborts; reconnects by itself.
   */
  events(onEvent: (event: RuntimeEvent) => void, signal: AbortSignal): Promise<void>;

  images: ImageService;

  /** Figures that only the runtime knows, of every running container; others may be among them. One call. */
  containerStats(): Promise<ContainerStats[]>;
  /** What the runtime tells about the sandbox's own process, each as far as it does. Rejects with NotFound. */
  sandboxProcess(sandboxID: string): Promise<SandboxProcess>;
  /**
   * Writes a checkpoint archive of a running container to `path`. Rejects with Unimplemented where the runtime cannot.
   *
   * @param timeoutSeconds 0: the runtime's own
   */
  checkpointContainer(containerID: string, path: string, timeoutSeconds: number): Promise<void>;
  /** URL of the runtime's streaming server for one session. */
  streamingURL(request: StreamingRequest): Promise<string>;
  /**
   * Why the pod cannot run with this runtime, as far as its spec alone tells, for people; undefined if nothing speaks against
   * it. Runtimes that have no such pods leave it out.
   */
  unsupported?(pod: Pod): string | undefined;
  /**
   * True where containers of the default handler are known to be plain processes of the node, as with runc and crun: what they
   * have mounted is let go when they end, whereas a virtual machine may hold it for as long as its sandbox lives. Runtimes
   * that cannot tell leave it out.
   */
  hasPlainContainers?(): boolean;
  /**
   * The agent stops: ends what the runtime runs in the agent's name and would outlive it, within seconds, and refuses such steps from
   * now on. Containers are not touched. Runtimes that run nothing leave it out.
   */
  drain?(): Promise<void>;
  /** Ends what is under way, then the connections. Resolves once that is over, within seconds. */
  close(): Promise<void>;
}

export interface RuntimeVersion {
  runtimeName: string;
  runtimeVersion: string;
  runtimeApiVersion: string;
}

export interface RuntimeCondition {
  status: boolean;
  reason: string;
  message: string;
}

export interface RuntimeStatus {
  runtimeReady: RuntimeCondition;
  networkReady: RuntimeCondition;
  handlers: { name: string; recursiveReadOnlyMounts: boolean; userNamespaces: boolean }[];
  supplementalGroupsPolicy: boolean;
}

/** `podUID` and `containerID` as far as the event told. */
export interface RuntimeEvent {
  kind: "created" | "started" | "exited" | "deleted" | "unknown";
  podUID: string | undefined;
  containerID: string | undefined;
  /** Unix ms by the runtime's clock, which is the machine's; absent: it does not say. */
  createdAtMs?: number | undefined;
}

export interface RuntimeList {
  sandboxes: SandboxSummary[];
  containers: ContainerSummary[];
}

export interface SandboxSummary {
  id: string;
  podUID: string;
  podName: string;
  podNamespace: string;
  attempt: number;
  ready: boolean;
  createdAtMs: number;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  runtimeHandler: string;
}

export type ContainerStateName = "created" | "running" | "exited" | "unknown";

export interface ContainerSummary {
  id: string;
  sandboxID: string;
  podUID: string;
  podName: string;
  podNamespace: string;
  name: string;
  attempt: number;
  state: ContainerStateName;
  createdAtMs: number;
  /** Image as given at creation. */
  image: string;
  imageRef: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

export interface PodSnapshot {
  podUID: string;
  /** Unix ms at which the reads began: everything before that is in the snapshot. */
  observedAtMs: number;
  /** Newest first: by attempt, then creation. */
  sandboxes: SandboxStatus[];
  /** Newest first: by creation. */
  containers: ContainerStatus[];
}

export interface SandboxStatus extends SandboxSummary {
  /** Primary first. Empty for host network and for dead sandboxes. */
  ips: string[];
  networkMode: NamespaceMode;
}

export interface ContainerStatus extends ContainerSummary {
  startedAtMs: number;
  finishedAtMs: number;
  exitCode: number;
  /** "Completed", "Error", "OOMKilled", … */
  reason: string;
  message: string;
  /** Full path of the log file. */
  logPath: string;
  mounts: Mount[];
  resources: LinuxResources | undefined;
  user: { uid: number; gid: number; supplementalGroups: number[] } | undefined;
  stopSignal: string | undefined;
}

export type NamespaceMode = "POD" | "CONTAINER" | "NODE" | "TARGET";

export interface IDMapping {
  hostID: number;
  containerID: number;
  length: number;
}

export interface PodSandboxConfig {
  name: string;
  namespace: string;
  uid: string;
  attempt: number;
  hostname: string;
  logDirectory: string;
  dns: { servers: string[]; searches: string[]; options: string[] } | undefined;
  portMappings: { protocol: "TCP" | "UDP" | "SCTP"; containerPort: number; hostPort: number; hostIP: string }[];
  labels: Record<string, string>;
  annotations: Record<string, string>;
  cgroupParent: string;
  sysctls: Record<string, string>;
  resources: LinuxResources | undefined;
  overhead: LinuxResources | undefined;
  securityContext: SandboxSecurityContext;
}

export interface NamespaceOptions {
  network: NamespaceMode;
  pid: NamespaceMode;
  ipc: NamespaceMode;
  targetID: string;
  /** Absent: the runtime's default (host user namespace). */
  userns?: { mode: NamespaceMode; uids: IDMapping[]; gids: IDMapping[] };
}

export interface SecurityProfile {
  type: "RuntimeDefault" | "Unconfined" | "Localhost";
  localhostRef: string;
}

export interface SELinuxOption {
  user: string;
  role: string;
  type: string;
  level: string;
}

export interface SandboxSecurityContext {
  namespaceOptions: NamespaceOptions;
  privileged: boolean;
  runAsUser: number | undefined;
  runAsGroup: number | undefined;
  supplementalGroups: number[];
  supplementalGroupsPolicy: "Merge" | "Strict";
  selinux: SELinuxOption | undefined;
  seccomp: SecurityProfile | undefined;
  apparmor: SecurityProfile | undefined;
  readonlyRootfs: boolean;
}

/** Fields left out are not sent: the runtime keeps its default. */
export interface LinuxResources {
  /** Microseconds. */
  cpuPeriod?: number;
  /** Microseconds per period; -1 = unlimited. */
  cpuQuota?: number;
  cpuShares?: number;
  memoryLimitBytes?: number;
  memorySwapLimitBytes?: number;
  oomScoreAdj?: number;
  cpusetCpus?: string;
  cpusetMems?: string;
  hugepageLimits?: { pageSize: string; limit: number }[];
  /** cgroup v2 file → content. */
  unified?: Record<string, string>;
}

export interface ContainerConfig {
  name: string;
  attempt: number;
  /** ID or reference as the image service returned it. */
  imageRef: string;
  userSpecifiedImage: string;
  command: string[];
  args: string[];
  workingDir: string;
  /** Bytes are what is no UTF-8 text. */
  envs: { key: string; value: string | Uint8Array }[];
  mounts: Mount[];
  devices: { containerPath: string; hostPath: string; permissions: string }[];
  cdiDevices: string[];
  labels: Record<string, string>;
  annotations: Record<string, string>;
  /** Relative to the sandbox's log directory. */
  logPath: string;
  stdin: boolean;
  stdinOnce: boolean;
  tty: boolean;
  resources: LinuxResources;
  securityContext: ContainerSecurityContext;
  stopSignal: string | undefined;
}

export interface Mount {
  containerPath: string;
  hostPath: string;
  readonly: boolean;
  selinuxRelabel: boolean;
  propagation: "PRIVATE" | "HOST_TO_CONTAINER" | "BIDIRECTIONAL";
  recursiveReadOnly: boolean;
  uidMappings?: IDMapping[];
  gidMappings?: IDMapping[];
  /** Image volume: the runtime mounts this image, `hostPath` is "". */
  image?: MountedImage;
  imageSubPath?: string;
}

/** The image behind an image volume. */
export interface MountedImage {
  /** As the image service returned it. */
  image: string;
  userSpecifiedImage: string;
  runtimeHandler: string;
  annotations: Record<string, string>;
  /** Its digest, told by runtimes of a container that has it mounted; "" if not. */
  imageRef?: string;
}

export interface ContainerSecurityContext {
  capabilities: { add: string[]; drop: string[] };
  privileged: boolean;
  namespaceOptions: NamespaceOptions;
  selinux: SELinuxOption | undefined;
  runAsUser: number | undefined;
  runAsUsername: string | undefined;
  runAsGroup: number | undefined;
  readonlyRootfs: boolean;
  supplementalGroups: number[];
  supplementalGroupsPolicy: "Merge" | "Strict";
  noNewPrivs: boolean;
  maskedPaths: string[];
  readonlyPaths: string[];
  seccomp: SecurityProfile | undefined;
  apparmor: SecurityProfile | undefined;
}

export interface SandboxProcess {
  /** On the host, for its /proc. */
  pid?: number;
  /** "" if unknown. */
  image: string;
}

/** As CRI ListContainerStats tells; each part is absent where the runtime does not measure it. */
export interface ContainerStats {
  containerID: string;
  cpu?: { timestampMs: number; usageCoreNanoSeconds?: number; usageNanoCores?: number };
  memory?: { timestampMs: number; workingSetBytes?: number; usageBytes?: number; rssBytes?: number };
  swap?: { timestampMs: number; availableBytes?: number; usageBytes?: number };
  writableLayer?: FilesystemUsage;
}

export interface ExecSyncResult {
  stdout: Buffer;
  stderr: Buffer;
  exitCode: number;
}

export type StreamingRequest =
  | {
      kind: "exec";
      containerID: string;
      command: string[];
      tty: boolean;
      stdin: boolean;
      stdout: boolean;
      stderr: boolean;
    }
  | { kind: "attach"; containerID: string; tty: boolean; stdin: boolean; stdout: boolean; stderr: boolean }
  | { kind: "portforward"; sandboxID: string; ports: number[] };

export interface ImageAuth {
  username?: string;
  password?: string;
  auth?: string;
  serverAddress?: string;
  identityToken?: string;
  registryToken?: string;
}

export interface ImageInfo {
  id: string;
  repoTags: string[];
  repoDigests: string[];
  sizeBytes: number;
  uid: number | undefined;
  username: string;
  pinned: boolean;
}

/** What the runtime uses of one filesystem. `mountpoint` lies on it and need not be a mount point itself. */
export interface FilesystemUsage {
  timestampMs: number;
  mountpoint: string;
  usedBytes?: number;
  inodesUsed?: number;
}

export interface ImageFsInfo {
  /** The first is the one that counts. */
  imageFilesystems: FilesystemUsage[];
  /** Empty from runtimes that know only the images'. */
  containerFilesystems: FilesystemUsage[];
}

/** How far a pull has come. */
export interface PullProgress {
  layers: number;
  /** Of these, there and unpacked. */
  layersDone: number;
  downloadedBytes: number;
  /** Of the layers whose download has begun; it grows until all have. */
  totalBytes: number;
}

export interface ImageService {
  listImages(): Promise<ImageInfo[]>;
  /** `undefined` if the runtime does not have it. */
  imageStatus(image: string): Promise<ImageInfo | undefined>;
  /** No deadline. @returns the image reference to create containers with */
  pullImage(
    image: string,
    options: {
      auth?: ImageAuth;
      annotations: Record<string, string>;
      sandboxConfig?: PodSandboxConfig;
      signal?: AbortSignal;
      /** Called often. Never by CRI runtimes, which tell nothing before the end. */
      onProgress?(progress: PullProgress): void;
    },
  ): Promise<string>;
  removeImage(image: string): Promise<void>;
  /**
   * What must not be removed: IDs, digests or names of the images of all containers that the runtime knows, whoever's and in
   * whatever state, of those that are mounted in them, and of the one that sandboxes are made of.
   */
  imagesInUse(): Promise<ReadonlySet<string>>;
  /** Where images and containers' writable layers lie, and what they take there. */
  fsInfo(): Promise<ImageFsInfo>;
}
