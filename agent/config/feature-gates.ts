import { suggestion } from "./problems.ts";

/**
 * The feature gates of Kubernetes 1.36 and what each is when nobody sets it. kubelet and kube-proxy know the gates of
 * every component (kind and kubeadm hand all of them the same list), so nodelet must too.
 */
const gatesByState = {
  lockedOn: `
    AggregatedDiscoveryRemoveBetaType AllowOverwriteTerminationGracePeriodSeconds AnonymousAuthConfigurableEndpoints
    AnyVolumeDataSource APIServerTracing AuthorizeNodeWithSelectors AuthorizeWithSelectors BtreeWatchCache
    ConsistentListFromCache CPUManagerPolicyOptions CRDValidationRatcheting CSIServiceAccountTokenSecrets
    CustomResourceFieldSelectors DisableAllocatorDualWrite DisableNodeKubeProxyVersion DynamicResourceAllocation
    ExecProbeTimeout HonorPVReclaimPolicy ImageMaximumGCAge ImageVolume InPlacePodVerticalScaling JobBackoffLimitPerIndex
    JobManagedBy JobPodReplacementPolicy JobSuccessPolicy KubeletCgroupDriverFromCRI KubeletFineGrainedAuthz KubeletPSI
    KubeletPodResourcesDynamicResources KubeletPodResourcesGet KubeletTracing LogarithmicScaleDown
    MatchLabelKeysInPodAffinity MultiCIDRServiceAllocator MutableCSINodeAllocatableCount NFTablesProxyMode
    NodeInclusionPolicyInPodTopologySpread NodeLogQuery NodeSwap OrderedNamespaceDeletion PodLifecycleSleepAction
    PodLifecycleSleepActionAllowZero PodObservedGenerationTracking PodSchedulingReadiness PreferSameTrafficDistribution
    ProcMountType RecoverVolumeExpansionFailure RecursiveReadOnlyMounts RelaxedDNSSearchValidation
    RelaxedEnvironmentVariableValidation ResilientWatchCacheInitialization RetryGenerateName SchedulerQueueingHints
    SELinuxChangePolicy SELinuxMountReadWriteOncePod SeparateTaintEvictionController ServiceAccountTokenJTI
    ServiceAccountTokenNodeBinding ServiceAccountTokenNodeBindingValidation ServiceAccountTokenPodNodeInfo
    SidecarContainers StreamingCollectionEncodingToJSON StreamingCollectionEncodingToProtobuf
    StructuredAuthenticationConfiguration SupplementalGroupsPolicy SystemdWatchdog TopologyManagerPolicyOptions
    UserNamespacesSupport VolumeAttributesClass WinDSR WinOverlay`,
  lockedOff: `GitRepoVolumeDriver`,
  // General availability, but still to be switched off.
  on: `InformerResourceVersion KubeletPodResourcesListUseActivePods`,
  deprecatedOn: `AllowServiceExternalIPs`,
  off: `
    AllowDNSOnlyNodeCSR AllowInsecureKubeletCertificateSigningRequests ChangeContainerStatusOnKubeletRestart
    InPlacePodVerticalScalingAllocatedStatus KMSv1 KubeletRegistrationGetOnExistsOnly SeparateCacheWatchRPC
    StorageNamespaceIndex WindowsHostNetwork`,
  betaOn: `
    AllowParsingUserUIDFromCertAuth APIResponseCompression APIServerIdentity AtomicFIFO
    AuthorizePodWebsocketUpgradeCreatePermission ClearingNominatedNodeNameAfterBinding ComponentFlagz ComponentStatusz
    ContainerCheckpoint ContainerRestartRules ContextualLogging CPUManagerPolicyBetaOptions CustomCPUCFSQuotaPeriod
    DeclarativeValidation DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency DisableCPUQuotaWithExclusiveCPUs
    DRAAdminAccess DRAConsumableCapacity DRADeviceBindingConditions DRADeviceTaints DRAExtendedResource
    DRAPartitionableDevices DRAPrioritizedList DRAResourceClaimDeviceStatus DRASchedulerFilterTimeout EnvFiles
    ExtendWebSocketsToKubelet ExternalServiceAccountTokenSigner GracefulNodeShutdown
    GracefulNodeShutdownBasedOnPodPriority HostnameOverride HPAConfigurableTolerance
    InOrderInformers InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling
    InPlacePodVerticalScalingInitContainers KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages
    KubeletSeparateDiskGC KubeletServiceAccountTokenForCredentialProviders ListFromCacheSnapshot LoggingBetaOptions
    MatchLabelKeysInPodTopologySpread MatchLabelKeysInPodTopologySpreadSelectorMerge MaxUnavailableStatefulSet
    NodeDeclaredFeatures NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching PLEGOnDemandRelist
    PodDeletionCost PodLevelResources PodReadyToStartContainersCondition PodTopologyLabelsAdmission PortForwardWebsockets
    PreventStaticPodAPIReferences RelaxedServiceNameValidation ReloadKubeletClientCAFile ReloadKubeletServerCertificateFile
    RemoteRequestHeaderUID ResourceHealthStatus ResourceHealthStatusMessage RestartAllContainersOnContainerExits
    RotateKubeletServerCertificate SchedulerAsyncPreemption SchedulerPopFromBackoffQ ServiceAccountNodeAudienceRestriction
    SizeBasedListCostEstimate StatefulSetSemanticRevisionComparison StorageVersionHash
    StructuredAuthenticationConfigurationEgressSelector StructuredAuthenticationConfigurationJWKSMetrics
    TokenRequestServiceAccountUIDValidation TopologyManagerPolicyBetaOptions TranslateStreamCloseWebsocketRequests
    UnauthenticatedHTTP2DOSMitigation UnlockWhileProcessingFIFO WatchCacheInitializationPostStartHook WatchList
    WatchListClient WindowsGracefulNodeShutdown`,
  betaOff: `
    ClusterTrustBundle ClusterTrustBundleProjection ConcurrentWatchObjectDecode CoordinatedLeaderElection
    CRDObservedGenerationTracking DeclarativeValidationTakeover LocalStorageCapacityIsolationFSQuotaMonitoring
    MutatingAdmissionPolicy PodCertificateRequest SchedulerAsyncAPICalls SELinuxMount StorageVersionMigrator`,
  alphaOff: `
    AllowUnsafeMalformedObjectDeletion APIServingWithRoutine CBORServingAndStorage ClientsAllowCBOR ClientsPreferCBOR
    CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook ConstrainedImpersonation
    ContainerStopSignals CPUManagerPolicyAlphaOptions CRIListStreaming CrossNamespaceVolumeDataSource CSIVolumeHealth
    DRADeviceTaintRules DRAListTypeAttributes DRANodeAllocatableResources DRAWorkloadResourceClaims EventedPLEG
    GangScheduling GenericWorkload HPAScaleToZero ImageVolumeWithDigest InPlacePodVerticalScalingExclusiveCPUs
    InPlacePodVerticalScalingExclusiveMemory KubeletInUserNamespace LoggingAlphaOptions
    ManifestBasedAdmissionControlConfig MemoryQoS MutablePodResourcesForSuspendedJobs MutablePVNodeAffinity
    MutableSchedulingDirectivesForSuspendedJobs NativeHistograms PodAndContainerStatsFromCRI PodLevelResourceManagers
    PodLogsQuerySplitStreams PodsAPI QOSReserved ReduceDefaultCrashLoopBackOffDecay RuntimeClassInImageCriApi
    ShardedListAndWatch StorageCapacityScoring StorageVersionAPI StrictIPCIDRValidation
    TaintTolerationComparisonOperators TopologyAwareWorkloadScheduling TopologyManagerPolicyAlphaOptions
    UnknownVersionInteroperabilityProxy UserNamespacesHostNetworkSupport VolumeLimitScaling WindowsCPUAndMemoryAffinity
    WorkloadAwarePreemption WorkloadWithJob`,
} as const;

// Gates of the kubelet that somebody has to switch on, and whose work is not there yet.
const gatesLater: ReadonlySet<string> = new Set([
  "CPUManagerPolicyAlphaOptions",
  "CRIListStreaming",
  "InPlacePodVerticalScalingExclusiveCPUs",
  "InPlacePodVerticalScalingExclusiveMemory",
  "KubeletInUserNamespace",
  "LocalStorageCapacityIsolationFSQuotaMonitoring",
  "MemoryQoS",
  "NativeHistograms",
  "PodAndContainerStatsFromCRI",
  "PodLevelResourceManagers",
  "PodsAPI",
  "QOSReserved",
  "RuntimeClassInImageCriApi",
  "SELinuxMount",
  "TopologyManagerPolicyAlphaOptions",
]);

/** One line for each gate that is switched on by its name and does nothing in the kubelet. */
export function kubeletGateWarnings(set: Readonly<Record<string, boolean>>): string[] {
  return Object.entries(set).flatMap(([gate, isOn]) =>
    isOn && gatesLater.has(gate) ? [`featureGates.${gate} is not supported yet and has no effect`] : [],
  );
}

type GateState = keyof typeof gatesByState;

const groupGates: Record<string, readonly GateState[]> = {
  AllAlpha: ["alphaOff"],
  AllBeta: ["betaOn", "betaOff"],
};

let gateStates: Map<string, GateState> | undefined;

function knownGates(): Map<string, GateState> {
  if (gateStates !== undefined) return gateStates;
  gateStates = new Map();
  for (const [state, names] of Object.entries(gatesByState) as [GateState, string][]) {
    for (const name of names.trim().split(/\s+/)) gateStates.set(name, state);
  }
  return gateStates;
}

/** What is wrong with setting `gate` to `value`: `is not a known feature gate`, `is locked to true`; undefined if nothing. */
export function checkFeatureGate(gate: string, value: boolean): string | undefined {
  if (Object.hasOwn(groupGates, gate)) return undefined;
  const state = knownGates().get(gate);
  if (state === undefined) return `is not a known feature gate${suggestion(gate, knownGates().keys())}`;
  if (state === "lockedOn" && !value) return "is locked to true and cannot be switched off";
  if (state === "lockedOff" && value) return "is locked to false and cannot be switched on";
  return undefined;
}

/**
 * Whether a gate is on: what `set` says about it, else about its stage (AllAlpha, AllBeta), else its default.
 * Unknown gates are off.
 */
export function isGateOn(set: Readonly<Record<string, boolean>>, gate: string): boolean {
  const own = set[gate];
  if (own !== undefined) return own;
  const state = knownGates().get(gate);
  if (state === undefined) return false;
  for (const [name, states] of Object.entries(groupGates)) {
    const all = set[name];
    if (all !== undefined && states.includes(state)) return all;
  }
  return state === "lockedOn" || ["on", "deprecatedOn", "betaOn"].includes(state);
}

/** A gate as metrics show it. */
export interface FeatureGate {
  name: string;
  /** "": general availability. */
  stage: "" | "ALPHA" | "BETA" | "DEPRECATED";
  isOn: boolean;
}

const stages: Record<GateState, FeatureGate["stage"]> = {
  lockedOn: "",
  lockedOff: "DEPRECATED",
  on: "",
  deprecatedOn: "DEPRECATED",
  off: "DEPRECATED",
  betaOn: "BETA",
  betaOff: "BETA",
  alphaOff: "ALPHA",
};

/** Every known gate, and whether it is on where `set` is what the configuration says. */
export function listFeatureGates(set: Readonly<Record<string, boolean>>): FeatureGate[] {
  const groups: FeatureGate[] = [
    { name: "AllAlpha", stage: "ALPHA", isOn: set["AllAlpha"] ?? false },
    { name: "AllBeta", stage: "BETA", isOn: set["AllBeta"] ?? false },
  ];
  const gates = [...knownGates()].map(([name, state]) => ({ name, stage: stages[state], isOn: isGateOn(set, name) }));
  return [...groups, ...gates];
}
