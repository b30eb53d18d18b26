/** What is read of the daemon's answers. Absent and null fields are both seen, depending on its version. */

export interface WireContainer {
  Id: string;
  Names?: string[] | null;
  Image?: string;
  ImageID?: string;
  /** Unix seconds. */
  Created?: number;
  /** "created", "running", "paused", "restarting", "removing", "exited", "dead" */
  State?: string;
  Labels?: Record<string, string> | null;
  HostConfig?: { NetworkMode?: string } | null;
}

export interface WireInspect {
  Id: string;
  Name?: string;
  /** RFC 3339 with nanoseconds. */
  Created?: string;
  /** The image's ID. */
  Image?: string;
  ResolvConfPath?: string;
  LogPath?: string;
  State?: WireState | null;
  Config?: {
    Image?: string;
    Labels?: Record<string, string> | null;
    StopSignal?: string;
    Tty?: boolean;
    OpenStdin?: boolean;
  } | null;
  /** The storage driver's own words. */
  GraphDriver?: { Data?: unknown } | null;
  HostConfig?: WireHostConfig | null;
  Mounts?: WireMountPoint[] | null;
}

export interface WireState {
  Running?: boolean;
  Paused?: boolean;
  Restarting?: boolean;
  OOMKilled?: boolean;
  Pid?: number;
  ExitCode?: number;
  /** Why it could not be started. */
  Error?: string;
  /** "0001-01-01T00:00:00Z": never. */
  StartedAt?: string;
  FinishedAt?: string;
}

export interface WireHostConfig {
  NetworkMode?: string;
  CpuShares?: number;
  CpuPeriod?: number;
  CpuQuota?: number;
  CpusetCpus?: string;
  CpusetMems?: string;
  Memory?: number;
  MemorySwap?: number;
  OomScoreAdj?: number;
  Mounts?: { Target?: string; BindOptions?: { ReadOnlyForceRecursive?: boolean } | null }[] | null;
}

export interface WireMountPoint {
  Type?: string;
  Source?: string;
  Destination?: string;
  RW?: boolean;
  /** "rprivate", "rslave", "rshared"; "" means private. */
  Propagation?: string;
}

export interface WireEvent {
  Action?: string;
  timeNano?: number;
  time?: number;
  Actor?: { ID?: string; Attributes?: Record<string, string> | null } | null;
}
