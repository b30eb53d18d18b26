/**
 * CRI messages as the gRPC library hands them over (see proto.ts for the options): names as in runtime.v1.proto, int64
 * and uint64 as decimal strings, absent messages null. Only what convert.ts reads or writes is listed. Nothing outside
 * this folder imports these.
 */

/** int64 or uint64: a decimal string when read; numbers are fine when written. */
export type Int64 = string | number;

export interface WireInt64Value {
  value: Int64;
}

export interface WireVersionResponse {
  version: string;
  runtime_name: string;
  runtime_version: string;
  runtime_api_version: string;
}

export interface WireStatusResponse {
  status: { conditions: { type: string; status: boolean; reason: string; message: string }[] } | null;
  runtime_handlers: {
    name: string;
    features: { recursive_read_only_mounts: boolean; user_namespaces: boolean } | null;
  }[];
  features: { supplemental_groups_policy: boolean } | null;
}

export interface WirePodSandboxMetadata {
  name: string;
  uid: string;
  namespace: string;
  attempt: number;
}

export interface WirePodSandbox {
  id: string;
  metadata: WirePodSandboxMetadata | null;
  state: string;
  created_at: Int64;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  runtime_handler: string;
}

export interface WirePodSandboxStatus extends WirePodSandbox {
  network: { ip: string; additional_ips: { ip: string }[] } | null;
  linux: { namespaces: { options: { network: string } | null } | null } | null;
}

export interface WireImageSpec {
  image: string;
  annotations?: Record<string, string>;
  user_specified_image?: string;
  runtime_handler?: string;
  image_ref?: string;
}

export interface WireContainer {
  id: string;
  pod_sandbox_id: string;
  metadata: { name: string; attempt: number } | null;
  image: WireImageSpec | null;
  image_ref: string;
  /** "" or absent from runtimes older than the field. */
  image_id?: string;
  state: string;
  created_at: Int64;
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

export interface WireIDMapping {
  host_id: number;
  container_id: number;
  length: number;
}

export interface WireMount {
  container_path: string;
  host_path: string;
  readonly: boolean;
  selinux_relabel: boolean;
  propagation: string;
  uidMappings: WireIDMapping[];
  gidMappings: WireIDMapping[];
  recursive_read_only: boolean;
  image: WireImageSpec | null;
  image_sub_path: string;
}

export interface WireLinuxResources {
  cpu_period: Int64;
  cpu_quota: Int64;
  cpu_shares: Int64;
  memory_limit_in_bytes: Int64;
  oom_score_adj: Int64;
  cpuset_cpus: string;
  cpuset_mems: string;
  hugepage_limits: { page_size: string; limit: Int64 }[];
  unified: Record<string, string>;
  memory_swap_limit_in_bytes: Int64;
}

export interface WireContainerStatus {
  id: string;
  metadata: { name: string; attempt: number } | null;
  state: string;
  created_at: Int64;
  started_at: Int64;
  finished_at: Int64;
  exit_code: number;
  image: WireImageSpec | null;
  image_ref: string;
  reason: string;
  message: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  mounts: WireMount[];
  log_path: string;
  resources: { linux: WireLinuxResources | null } | null;
  user: { linux: { uid: Int64; gid: Int64; supplemental_groups: Int64[] } | null } | null;
  stop_signal: string;
}

export interface WireImage {
  id: string;
  repo_tags: string[];
  repo_digests: string[];
  size: Int64;
  uid: WireInt64Value | null;
  username: string;
  pinned: boolean;
}

export interface WireFilesystemUsage {
  timestamp: Int64;
  fs_id: { mountpoint: string } | null;
  used_bytes: WireInt64Value | null;
  inodes_used: WireInt64Value | null;
}

export interface WireContainerStats {
  attributes: { id: string } | null;
  cpu: {
    timestamp: Int64;
    usage_core_nano_seconds: WireInt64Value | null;
    usage_nano_cores: WireInt64Value | null;
  } | null;
  memory: {
    timestamp: Int64;
    working_set_bytes: WireInt64Value | null;
    usage_bytes: WireInt64Value | null;
    rss_bytes: WireInt64Value | null;
  } | null;
  swap: {
    timestamp: Int64;
    swap_available_bytes: WireInt64Value | null;
    swap_usage_bytes: WireInt64Value | null;
  } | null;
  writable_layer: WireFilesystemUsage | null;
}

export interface WireContainerEvent {
  container_id: string;
  container_event_type: string;
  /** Unix ns. */
  created_at: string;
  pod_sandbox_status: WirePodSandboxStatus | null;
}
