import type { Service } from "../../../agent/kube/types.ts";
import { objectAt } from "./json.ts";
import { duplicate, type FieldError, invalidValue, notSupported, required } from "./status.ts";
import { isPort, labelForm, labelText, portText } from "./validation.ts";

/** Wrong fields of a service, after defaults. */
export function validateService(service: Service): FieldError[] {
  const errors: FieldError[] = [];
  const spec = service.spec ?? {};
  const types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
  if (spec.type !== undefined && !types.includes(spec.type)) errors.push(notSupported("spec.type", spec.type, types));
  const ports = spec.ports ?? [];
  if (ports.length === 0 && spec.type !== "ExternalName" && spec.clusterIP !== "None") {
    errors.push(required("spec.ports"));
  }
  const seenNames = new Set<string>();
  const seenPorts = new Set<string>();
  for (const [i, port] of ports.entries()) {
    const field = `spec.ports[${i}]`;
    if (!isPort(port.port)) errors.push(invalidValue(`${field}.port`, port.port ?? 0, portText));
    const { targetPort } = port;
    if (typeof targetPort === "number" && !isPort(targetPort)) {
      errors.push(invalidValue(`${field}.targetPort`, targetPort, portText));
    }
    if (ports.length > 1 && (port.name === undefined || port.name === "")) errors.push(required(`${field}.name`));
    if (port.name !== undefined && port.name !== "") {
      if (!labelForm.test(port.name)) errors.push(invalidValue(`${field}.name`, port.name, labelText));
      if (seenNames.has(port.name)) errors.push(duplicate(`${field}.name`, port.name));
      seenNames.add(port.name);
    }
    const id = `${port.protocol ?? "TCP"}/${port.port}`;
    if (seenPorts.has(id)) errors.push(duplicate(field, { port: port.port, protocol: port.protocol }));
    seenPorts.add(id);
    if (!["TCP", "UDP", "SCTP"].includes(port.protocol ?? "TCP")) {
      errors.push(notSupported(`${field}.protocol`, port.protocol, ["SCTP", "TCP", "UDP"]));
    }
  }
  if (spec.type === "ExternalName" && stringOf(objectAt(service, "spec")["externalName"]) === "") {
    errors.push(required("spec.externalName"));
  }
  return errors;
}

function stringOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** What may not change about a service. */
export function validateServiceUpdate(next: Service, old: Service): FieldError[] {
  const before = old.spec?.clusterIP ?? "";
  const after = next.spec?.clusterIP ?? "";
  const stays = next.spec?.type !== "ExternalName" && old.spec?.type !== "ExternalName";
  if (!stays || before === "" || before === after) return [];
  return [invalidValue("spec.clusterIPs[0]", [after], "may not change once set")];
}
