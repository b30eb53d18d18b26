import type { Authorizer } from "./auth.ts";
import { isObject, type JsonObject, objectAt, stringAt, valueAt } from "./json.ts";
import { badRequest } from "./status.ts";
import { type TokenAuthority, tokenIssuer } from "./tokens.ts";
import type { User } from "./types.ts";

export interface ReviewDeps {
  tokens: TokenAuthority;
  /** Static bearer tokens. */
  known: ReadonlyMap<string, User>;
  authorizer: Authorizer | undefined;
}

/** Kinds that are calls: posted, answered, never stored. */
export const reviewKinds: Readonly<Record<string, { group: string; kind: string; namespaced: boolean }>> = {
  tokenreviews: { group: "authentication.k8s.io", kind: "TokenReview", namespaced: false },
  selfsubjectreviews: { group: "authentication.k8s.io", kind: "SelfSubjectReview", namespaced: false },
  subjectaccessreviews: { group: "authorization.k8s.io", kind: "SubjectAccessReview", namespaced: false },
  localsubjectaccessreviews: { group: "authorization.k8s.io", kind: "LocalSubjectAccessReview", namespaced: true },
  selfsubjectaccessreviews: { group: "authorization.k8s.io", kind: "SelfSubjectAccessReview", namespaced: false },
  selfsubjectrulesreviews: { group: "authorization.k8s.io", kind: "SelfSubjectRulesReview", namespaced: false },
};

/** Answers a review. Throws 400 when the body is none. */
export function answerReview(plural: string, body: unknown, user: User, deps: ReviewDeps): JsonObject {
  if (!isObject(body)) throw badRequest("a review needs an object as its body");
  const review = { ...body, metadata: objectAt(body, "metadata") };
  switch (plural) {
    case "tokenreviews":
      return { ...review, status: reviewToken(body, deps) };
    case "selfsubjectreviews":
      return { ...review, status: { userInfo: userInfo(user) } };
    case "selfsubjectrulesreviews": {
      const all = { verbs: ["*"], apiGroups: ["*"], resources: ["*"] };
      const paths = { verbs: ["*"], nonResourceURLs: ["*"] };
      return { ...review, status: { resourceRules: [all], nonResourceRules: [paths], incomplete: false } };
    }
    default:
      return { ...review, status: reviewAccess(body, plural === "selfsubjectaccessreviews" ? user : undefined, deps) };
  }
}

function reviewToken(body: JsonObject, { tokens, known }: ReviewDeps): JsonObject {
  const token = stringAt(body, "spec", "token");
  const asked = valueAt(body, ["spec", "audiences"]);
  const audiences = Array.isArray(asked) && asked.length > 0 ? asked.map(String) : [tokenIssuer];
  const fixed = known.get(token);
  if (fixed !== undefined) return { authenticated: true, user: userInfo(fixed), audiences };
  const found = tokens.authenticate(token, audiences);
  if (found === undefined) return { user: {}, error: "invalid bearer token" };
  return { authenticated: true, user: userInfo(found.user), audiences: found.audiences };
}

function userInfo({ name, uid, groups, extra }: User): JsonObject {
  return { username: name, ...(uid === undefined ? {} : { uid }), groups, ...(extra === undefined ? {} : { extra }) };
}

function reviewAccess(body: JsonObject, self: User | undefined, { authorizer }: ReviewDeps): JsonObject {
  const spec = objectAt(body, "spec");
  const groups = Array.isArray(spec["groups"]) ? spec["groups"].map(String) : [];
  const user = self ?? { name: stringAt(spec, "user"), groups };
  if (user.name === "" || user.name === "system:anonymous") return { allowed: false };
  const about = objectAt(spec, "resourceAttributes");
  const path = stringAt(spec, "nonResourceAttributes", "path");
  const answer =
    authorizer?.({
      user,
      verb: stringAt(about, "verb") || stringAt(spec, "nonResourceAttributes", "verb"),
      group: stringAt(about, "group"),
      resource: stringAt(about, "resource"),
      subresource: stringAt(about, "subresource"),
      namespace: stringAt(about, "namespace"),
      name: stringAt(about, "name"),
      ...(path === "" ? {} : { path }),
    }) ?? true;
  if (answer === true) return { allowed: true };
  return { allowed: false, ...(typeof answer === "string" ? { reason: answer } : {}) };
}
