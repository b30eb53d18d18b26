import type { Pod, PodSpec, ResourceList, ResourceRequirements } from "../../../agent/kube/types.ts";
import { parseQuantity } from "../../../agent/kube/quantity.ts";
import { qosClassOf } from "./pod-defaults.ts";
import { type FieldError, forbiddenField, invalidValue } from "./status.ts";

/** The spec after a write to the resize subresource: resources and resize policies of what exists, nothing else. */
export function resized(old: Pod, input: Pod): PodSpec {
  const spec = structuredClone(old.spec);
  for (const field of ["containers", "initContainers"] as const) {
    for (const container of spec[field] ?? []) {
      const wanted = input.spec[field]?.find((c) => c.name === container.name);
      if (wanted?.resources !== undefined) container.resources = wanted.resources;
      if (wanted?.resizePolicy !== undefined) container.resizePolicy = wanted.resizePolicy;
    }
  }
  if (spec.resources !== undefined && input.spec.resources !== undefined) spec.resources = input.spec.resources;
  return spec;
}

/** What a resize may not do. */
export function validateResize(spec: PodSpec, old: PodSpec): FieldError[] {
  const errors: FieldError[] = [];
  if (qosClassOf(spec) !== qosClassOf(old)) {
    const text = "Pod QOS Class may not change as a result of resizing";
    errors.push(invalidValue("spec", qosClassOf(spec), text));
  }
  for (const field of ["containers", "initContainers"] as const) {
    for (const [i, container] of (spec[field] ?? []).entries()) {
      const path = `spec.${field}[${i}].resources`;
      errors.push(...changeErrors(path, container.resources, old[field]?.[i]?.resources));
    }
  }
  errors.push(...changeErrors("spec.resources", spec.resources, old.resources));
  return errors;
}

function changeErrors(path: string, now: ResourceRequirements = {}, before: ResourceRequirements = {}): FieldError[] {
  const errors: FieldError[] = [];
  for (const part of ["requests", "limits"] as const) {
    const [to, from]: ResourceList[] = [now[part] ?? {}, before[part] ?? {}];
    for (const name of new Set([...Object.keys(to ?? {}), ...Object.keys(from ?? {})])) {
      const [next, last] = [to?.[name], from?.[name]];
      if (name === "cpu" || name === "memory") {
        const isGone = next === undefined && last !== undefined;
        if (isGone) errors.push(forbiddenField(`${path}.${part}`, `resource ${part} cannot be removed`));
      } else if (amount(next) !== amount(last)) {
        errors.push(forbiddenField(`${path}.${part}`, "only cpu and memory resources are mutable"));
      }
    }
  }
  for (const [name, limit] of Object.entries(now.limits ?? {})) {
    const request = now.requests?.[name];
    if ((amount(request) ?? 0n) <= (amount(limit) ?? 0n)) continue;
    const text = `must be less than or equal to ${name} limit of ${limit}`;
    errors.push(invalidValue(`${path}.requests`, String(request), text));
  }
  return errors;
}

function amount(quantity: ResourceList[string] | undefined): bigint | undefined {
  return quantity === undefined ? undefined : parseQuantity(quantity);
}
