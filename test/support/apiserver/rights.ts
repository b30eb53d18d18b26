import type { Authorizer } from "./auth.ts";

const serviceAccount = /^system:serviceaccount:[^:]+:(.+)$/;
const grant = /^may-([a-z]+)-nodes-([a-z]+)$/;

/**
 * What stands in for RBAC: everybody may do everything, except that service accounts have no rights on subresources of
 * nodes, which is what kubelets ask about. One whose name is `may-VERB-nodes-SUBRESOURCE` has just that right.
 */
export const clusterRights: Authorizer = ({ user, verb, resource, subresource }) => {
  const account = serviceAccount.exec(user.name)?.[1];
  if (account === undefined || resource !== "nodes" || subresource === "") return true;
  const [, grantedVerb, grantedSubresource] = grant.exec(account) ?? [];
  if (verb === grantedVerb && subresource === grantedSubresource) return true;
  return `no role gives ${user.name} the right to ${verb} nodes/${subresource}`;
};
