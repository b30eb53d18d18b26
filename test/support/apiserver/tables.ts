import type { EndpointSlice, Node, Pod, Service } from "../../../agent/kube/types.ts";
import { duration } from "./duration.ts";
import { isObject, objectAt, objectsAt, stringAt, valueAt } from "./json.ts";
import { podRow } from "./pod-row.ts";
import { type ApiObject, type ResourceType, typed } from "./types.ts";

export type Cell = string | number | boolean;

interface Column {
  name: string;
  type?: "string" | "integer" | "boolean";
  /** Shown with -o wide only. */
  wide?: boolean;
}

interface Printer {
  columns: readonly Column[];
  cells(object: ApiObject, nowMs: number): Cell[];
}

export interface TableOptions {
  nowMs: number;
  includeObject: "None" | "Metadata" | "Object";
  resourceVersion: string;
}

/** The meta.k8s.io/v1 Table that kubectl prints. */
export function tableOf(
  resource: ResourceType,
  objects: readonly ApiObject[],
  { nowMs, includeObject, resourceVersion }: TableOptions,
): Record<string, unknown> {
  const printer = printers[resource.plural] ?? plain;
  return {
    kind: "Table",
    apiVersion: "meta.k8s.io/v1",
    metadata: { resourceVersion },
    columnDefinitions: printer.columns.map(({ name, type = "string", wide = false }) => ({
      name,
      type,
      format: name === "Name" ? "name" : "",
      description: "",
      priority: wide ? 1 : 0,
    })),
    rows: objects.map((object) => ({
      cells: printer.cells(object, nowMs),
      ...(includeObject === "None"
        ? {}
        : {
            object:
              includeObject === "Object"
                ? object
                : { kind: "PartialObjectMetadata", apiVersion: "meta.k8s.io/v1", metadata: object.metadata },
          }),
    })),
  };
}

const column = (name: string, more: Omit<Column, "name"> = {}): Column => ({ name, ...more });
const wide = { wide: true } as const;

function age(object: ApiObject, nowMs: number): string {
  const created = object.metadata.creationTimestamp;
  return created === undefined ? "<unknown>" : duration(nowMs - Date.parse(created));
}

const size = (value: unknown) => (isObject(value) ? Object.keys(value).length : 0);

const plain: Printer = {
  columns: [column("Name"), column("Age")],
  cells: (object, nowMs) => [object.metadata.name, age(object, nowMs)],
};

const printers: Readonly<Record<string, Printer>> = {
  pods: {
    columns: [
      column("Name"),
      column("Ready"),
      column("Status"),
      column("Restarts"),
      column("Age"),
      column("IP", wide),
      column("Node", wide),
      column("Nominated Node", wide),
      column("Readiness Gates", wide),
    ],
    cells: (object, nowMs) => {
      const pod = typed<Pod>(object);
      const row = podRow(pod, nowMs);
      return [
        pod.metadata.name,
        `${row.ready}/${row.total}`,
        row.status,
        row.restarts,
        age(object, nowMs),
        pod.status?.podIP || "<none>",
        pod.spec.nodeName || "<none>",
        pod.status?.nominatedNodeName || "<none>",
        row.readinessGates,
      ];
    },
  },
  nodes: {
    columns: [
      column("Name"),
      column("Status"),
      column("Roles"),
      column("Age"),
      column("Version"),
      column("Internal-IP", wide),
      column("External-IP", wide),
      column("OS-Image", wide),
      column("Kernel-Version", wide),
      column("Container-Runtime", wide),
    ],
    cells: (object, nowMs) => nodeCells(typed<Node>(object), age(object, nowMs)),
  },
  services: {
    columns: [
      column("Name"),
      column("Type"),
      column("Cluster-IP"),
      column("External-IP"),
      column("Port(s)"),
      column("Age"),
      column("Selector", wide),
    ],
    cells: (object, nowMs) => serviceCells(typed<Service>(object), age(object, nowMs)),
  },
  endpointslices: {
    columns: [column("Name"), column("AddressType"), column("Ports"), column("Endpoints"), column("Age")],
    cells: (object, nowMs) => {
      const slice = typed<EndpointSlice>(object);
      const ports = (slice.ports ?? []).map((p) => String(p.port ?? "*"));
      const addresses = (slice.endpoints ?? []).flatMap((e) => e.addresses);
      return [slice.metadata.name, slice.addressType, shortList(ports), shortList(addresses), age(object, nowMs)];
    },
  },
  events: {
    columns: [
      column("Last Seen"),
      column("Type"),
      column("Reason"),
      column("Object"),
      column("Subobject", wide),
      column("Source", wide),
      column("Message"),
      column("First Seen", wide),
      column("Count", wide),
      column("Name", wide),
    ],
    cells: eventCells,
  },
  configmaps: {
    columns: [column("Name"), column("Data"), column("Age")],
    cells: (o, nowMs) => [o.metadata.name, size(o["data"]) + size(o["binaryData"]), age(o, nowMs)],
  },
  secrets: {
    columns: [column("Name"), column("Type"), column("Data"), column("Age")],
    cells: (o, nowMs) => [o.metadata.name, stringAt(o, "type"), size(o["data"]), age(o, nowMs)],
  },
  namespaces: {
    columns: [column("Name"), column("Status"), column("Age")],
    cells: (o, nowMs) => [o.metadata.name, stringAt(o, "status", "phase"), age(o, nowMs)],
  },
  serviceaccounts: {
    columns: [column("Name"), column("Secrets"), column("Age")],
    cells: (o, nowMs) => [o.metadata.name, objectsAt(o, "secrets").length, age(o, nowMs)],
  },
  leases: {
    columns: [column("Name"), column("Holder"), column("Age")],
    cells: (o, nowMs) => [o.metadata.name, stringAt(o, "spec", "holderIdentity"), age(o, nowMs)],
  },
  runtimeclasses: {
    columns: [column("Name"), column("Handler"), column("Age")],
    cells: (o, nowMs) => [o.metadata.name, stringAt(o, "handler"), age(o, nowMs)],
  },
  priorityclasses: {
    columns: [column("Name"), column("Value"), column("Global-Default"), column("Age")],
    cells: (o, nowMs) => [o.metadata.name, Number(o["value"] ?? 0), o["globalDefault"] === true, age(o, nowMs)],
  },
  persistentvolumeclaims: {
    columns: [column("Name"), column("Status"), column("Volume"), column("StorageClass"), column("Age")],
    cells: (o, nowMs) => [
      o.metadata.name,
      stringAt(o, "status", "phase"),
      stringAt(o, "spec", "volumeName"),
      stringAt(o, "spec", "storageClassName"),
      age(o, nowMs),
    ],
  },
  certificatesigningrequests: {
    columns: [column("Name"), column("Age"), column("SignerName"), column("Requestor"), column("Condition")],
    cells: (o, nowMs) => {
      const conditions = objectsAt(o, "status", "conditions").map((c) => stringAt(c, "type"));
      if (stringAt(o, "status", "certificate") !== "") conditions.push("Issued");
      return [
        o.metadata.name,
        age(o, nowMs),
        stringAt(o, "spec", "signerName"),
        stringAt(o, "spec", "username"),
        conditions.join(",") || "Pending",
      ];
    },
  },
};

function nodeCells(node: Node, nodeAge: string): Cell[] {
  const ready = node.status?.conditions?.find((c) => c.type === "Ready");
  const states = [ready === undefined ? "Unknown" : ready.status === "True" ? "Ready" : "NotReady"];
  if (node.spec?.unschedulable === true) states.push("SchedulingDisabled");
  const prefix = "node-role.kubernetes.io/";
  const roles = Object.keys(node.metadata.labels ?? {})
    .filter((label) => label.startsWith(prefix))
    .map((label) => label.slice(prefix.length));
  const addressOf = (type: string) => node.status?.addresses?.find((a) => a.type === type)?.address ?? "<none>";
  const info = node.status?.nodeInfo;
  return [
    node.metadata.name,
    states.join(","),
    roles.toSorted().join(",") || "<none>",
    nodeAge,
    info?.kubeletVersion ?? "",
    addressOf("InternalIP"),
    addressOf("ExternalIP"),
    info?.osImage || "<unknown>",
    info?.kernelVersion || "<unknown>",
    info?.containerRuntimeVersion || "<unknown>",
  ];
}

function serviceCells(service: Service, serviceAge: string): Cell[] {
  const spec = service.spec ?? {};
  const ports = (spec.ports ?? []).map((p) =>
    p.nodePort === undefined ? `${p.port}/${p.protocol}` : `${p.port}:${p.nodePort}/${p.protocol}`,
  );
  const selector = Object.entries(spec.selector ?? {}).map(([key, value]) => `${key}=${value}`);
  const external = [
    ...(service.status?.loadBalancer?.ingress ?? []).map((i) => i.ip ?? i.hostname ?? ""),
    ...(spec.externalIPs ?? []),
  ];
  const externalName = stringAt(service, "spec", "externalName");
  const externalText = spec.type === "ExternalName" ? externalName : external.join(",");
  return [
    service.metadata.name,
    spec.type ?? "",
    spec.clusterIP || "<none>",
    externalText || (spec.type === "LoadBalancer" ? "<pending>" : "<none>"),
    ports.join(",") || "<none>",
    serviceAge,
    selector.join(",") || "<none>",
  ];
}

function eventCells(event: ApiObject, nowMs: number): Cell[] {
  const involved = objectAt(event, event["regarding"] === undefined ? "involvedObject" : "regarding");
  const text = (...fields: string[]) => fields.map((f) => stringAt(event, f)).find((v) => v !== "") ?? "";
  const first = text("firstTimestamp", "deprecatedFirstTimestamp", "eventTime");
  const last =
    stringAt(event, "series", "lastObservedTime") || text("lastTimestamp", "deprecatedLastTimestamp") || first;
  const since = (time: string) => (time === "" ? "<unknown>" : duration(nowMs - Date.parse(time)));
  const source = objectAt(event, event["source"] === undefined ? "deprecatedSource" : "source");
  const component = stringAt(source, "component") || text("reportingComponent", "reportingController");
  const host = stringAt(source, "host");
  const count = valueAt(event, ["series", "count"]) ?? event["count"] ?? event["deprecatedCount"] ?? 1;
  return [
    since(last),
    text("type"),
    text("reason"),
    `${stringAt(involved, "kind").toLowerCase()}/${stringAt(involved, "name")}`,
    stringAt(involved, "fieldPath"),
    host === "" ? component : `${component}, ${host}`,
    text("message", "note").trim(),
    since(first),
    Number(count),
    event.metadata.name,
  ];
}

// As many as kubectl's printers show of a long list.
function shortList(items: readonly string[]): string {
  if (items.length === 0) return "<unset>";
  return items.length <= 3 ? items.join(",") : `${items.slice(0, 3).join(",")} + ${items.length - 3} more...`;
}
