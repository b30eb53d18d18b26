import type { Container, Pod, ResourceList } from "../../../agent/kube/types.ts";

/** A container that asks for `requests` and may have `limits`. */
export function container(
  name: string,
  requests?: ResourceList,
  limits?: ResourceList,
  more: Partial<Container> = {},
): Container {
  return {
    name,
    ...(requests === undefined && limits === undefined
      ? {}
      : {
          resources: { ...(requests === undefined ? {} : { requests }), ...(limits === undefined ? {} : { limits }) },
        }),
    ...more,
  };
}

/** A pod with these containers, as the API server would give it, without status. */
export function pod(
  containers: Container[],
  spec: Partial<Pod["spec"]> = {},
  metadata: Partial<Pod["metadata"]> = {},
): Pod {
  return { metadata: { name: "web", namespace: "default", uid: "u-1", ...metadata }, spec: { containers, ...spec } };
}
