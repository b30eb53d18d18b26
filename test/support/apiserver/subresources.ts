import type { Pod } from "../../../agent/kube/types.ts";
import type { Exchange } from "./exchange.ts";
import { isObject, numberAt, objectAt, stringAt } from "./json.ts";
import type { Registry } from "./registry.ts";
import { timeOf } from "./registry.ts";
import type { RequestInfo } from "./request-info.ts";
import { badRequest, conflict, methodNotAllowed, success, unknownPath } from "./status.ts";
import type { TokenAuthority } from "./tokens.ts";
import { type ApiObject, typed } from "./types.ts";

export interface SubresourceDeps {
  registry: Registry;
  tokens: TokenAuthority;
  nowMs(): number;
}

/** Subresources that are calls about an object: `binding`, `eviction`, `token`, `finalize`. */
export const callSubresources = ["binding", "eviction", "token", "finalize"];

/** Answers one of {@link callSubresources}. */
export async function serveCall(exchange: Exchange, info: RequestInfo, deps: SubresourceDeps): Promise<void> {
  const { resource, namespace, name, subresource } = info;
  const { registry } = deps;
  if (resource?.subresources.includes(subresource) !== true) throw unknownPath();
  if (exchange.method !== "POST" && subresource !== "finalize") throw methodNotAllowed();
  const body = await exchange.readObject();
  if (!isObject(body)) throw badRequest("the request needs an object as its body");
  switch (subresource) {
    case "binding":
      bindPod(registry, namespace, name, stringAt(body, "target", "name"), deps.nowMs());
      return exchange.sendStatus(success(undefined, 201));
    case "eviction": {
      const grace = numberAt(body, "deleteOptions", "gracePeriodSeconds");
      const { uid } = objectAt(body, "deleteOptions", "preconditions");
      registry.delete(resource, namespace, name, {
        ...(grace === undefined ? {} : { gracePeriodSeconds: grace }),
        ...(typeof uid === "string" ? { preconditions: { uid } } : {}),
      });
      return exchange.sendStatus(success(undefined, 201));
    }
    case "token":
      return exchange.send(201, deps.tokens.issue(registry.get(resource, namespace, name), body as ApiObject));
    case "finalize": {
      const finalizers = objectAt(body, "spec")["finalizers"] ?? [];
      const changed = registry.modify(resource, "", name, (o) => (o["spec"] = { ...objectAt(o, "spec"), finalizers }));
      return exchange.send(200, changed);
    }
    default:
      throw unknownPath();
  }
}

/** Gives a pod its node, as a scheduler does. Throws 409 when it has one. */
export function bindPod(registry: Registry, namespace: string, name: string, nodeName: string, nowMs: number): void {
  if (nodeName === "") throw badRequest("a binding needs target.name");
  const resource = { group: "", plural: "pods" };
  const type = registry.typeOf("", "pods");
  const pod = typed<Pod>(registry.get(type, namespace, name));
  if (pod.spec.nodeName !== undefined && pod.spec.nodeName !== "") {
    throw conflict(resource, name, `pod ${name} is already assigned to node "${pod.spec.nodeName}"`);
  }
  if (pod.metadata.deletionTimestamp !== undefined) {
    throw conflict(resource, name, `pod ${name} is being deleted, cannot be assigned to a host`);
  }
  const bind = (object: ApiObject) => {
    const copy = typed<Pod>(object);
    copy.spec.nodeName = nodeName;
    copy.status ??= {};
    const others = (copy.status.conditions ?? []).filter((c) => c.type !== "PodScheduled");
    copy.status.conditions = [
      ...others,
      {
        type: "PodScheduled",
        status: "True",
        lastProbeTime: null,
        lastTransitionTime: timeOf(nowMs),
        observedGeneration: copy.metadata.generation ?? 0,
      },
    ];
  };
  registry.modify(type, namespace, name, bind, { keepGeneration: true });
}
