/**
 * How lists merge in strategic merge patches: by the patchMergeKey of the API's own types. What is not named here is
 * replaced as a whole (lists) or merged field by field (objects).
 */
export interface MergeSchema {
  /** For a list of objects: the field whose value names an element. */
  readonly mergeKey?: string;
  /** For apply only, where several fields together name an element (containerPort and protocol). */
  readonly mapKeys?: readonly string[];
  /** For a list of primitives: elements are added to the set. */
  readonly set?: boolean;
  /** Schemas of the fields, of the elements' fields for a list. */
  readonly fields?: Readonly<Record<string, MergeSchema>>;
}

const keyed = (mergeKey: string, fields?: MergeSchema["fields"], mapKeys?: readonly string[]): MergeSchema => ({
  mergeKey,
  ...(fields === undefined ? {} : { fields }),
  ...(mapKeys === undefined ? {} : { mapKeys }),
});
const object = (fields: MergeSchema["fields"]): MergeSchema => (fields === undefined ? {} : { fields });
const set: MergeSchema = { set: true };
const conditions = keyed("type");

const metadata = object({ finalizers: set, ownerReferences: keyed("uid") });

const container: MergeSchema["fields"] = {
  env: keyed("name"),
  ports: keyed("containerPort", undefined, ["containerPort", "protocol"]),
  volumeMounts: keyed("mountPath"),
  volumeDevices: keyed("devicePath"),
};

const podSpec = object({
  volumes: keyed("name"),
  containers: keyed("name", container),
  initContainers: keyed("name", container),
  ephemeralContainers: keyed("name", container),
  imagePullSecrets: keyed("name"),
  hostAliases: keyed("ip"),
  topologySpreadConstraints: keyed("topologyKey", undefined, ["topologyKey", "whenUnsatisfiable"]),
  resourceClaims: keyed("name"),
  schedulingGates: keyed("name"),
});

const byKind: Readonly<Record<string, MergeSchema["fields"]>> = {
  Pod: {
    spec: podSpec,
    status: object({
      conditions,
      podIPs: keyed("ip"),
      hostIPs: keyed("ip"),
      resourceClaimStatuses: keyed("name"),
    }),
  },
  Node: {
    spec: object({ podCIDRs: set }),
    status: object({ conditions, addresses: keyed("type") }),
  },
  Service: {
    spec: object({ ports: keyed("port", undefined, ["port", "protocol"]) }),
    status: object({ conditions }),
  },
  ServiceAccount: { secrets: keyed("name") },
  Namespace: { status: object({ conditions }) },
  PersistentVolumeClaim: { status: object({ conditions }) },
  CSINode: { spec: object({ drivers: keyed("name") }) },
};

/** The schema of a kind's objects; kinds without lists of their own get the metadata's alone. */
export function mergeSchemaOf(kind: string): MergeSchema {
  return object({ metadata, ...byKind[kind] });
}
