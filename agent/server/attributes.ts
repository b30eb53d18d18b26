/** What a request asks the node for, as an authorizer sees it: a verb on subresources of the node. */
export interface RequestAttributes {
  /** Empty for methods that have none, such as HEAD. */
  readonly verb: string;
  /** Tried in order; the first that is allowed wins. */
  readonly subresources: readonly string[];
}

const verbs = new Map([
  ["GET", "get"],
  ["POST", "create"],
  ["PUT", "update"],
  ["PATCH", "patch"],
  ["DELETE", "delete"],
]);

/** What is below (or at) a path. Whatever is not listed needs `proxy`, which is as good as root on the node. */
const subresourcesBelow: readonly (readonly [path: string, subresources: readonly string[]])[] = [
  ["/pods", ["pods", "proxy"]],
  ["/runningpods", ["pods", "proxy"]],
  ["/healthz", ["healthz", "proxy"]],
  ["/configz", ["configz", "proxy"]],
  ["/stats", ["stats"]],
  ["/metrics", ["metrics"]],
  ["/logs", ["log"]],
  ["/checkpoint", ["checkpoint"]],
  ["/statusz", ["statusz"]],
  ["/flagz", ["configz"]],
];

/** @param path decoded */
export function requestAttributes(method: string, path: string): RequestAttributes {
  const found = subresourcesBelow.find(([root]) => path === root || path.startsWith(`${root}/`));
  return { verb: verbs.get(method) ?? "", subresources: found?.[1] ?? ["proxy"] };
}
