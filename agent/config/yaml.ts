import { type Document, type ParseOptions, type DocumentOptions, isScalar, parseAllDocuments } from "yaml";

/**
 * The documents of a text, as Kubernetes reads YAML; empty ones are left out. What is wrong with one is in its `errors`. Never throws.
 *
 * @param options what else the parser is to be strict or silent about
 */
export function parseYAML(
  text: string,
  options: Pick<ParseOptions & DocumentOptions, "uniqueKeys" | "logLevel"> = {},
): Document.Parsed[] {
  // Kubernetes' YAML is 1.1 (yes, on, 0644) but for base-60 numbers and timestamps: it has no fields of such types.
  const parsed = parseAllDocuments(text, {
    version: "1.1",
    stringKeys: true,
    customTags: (tags) =>
      tags.filter((tag) => typeof tag === "string" || (tag.format !== "TIME" && !tag.tag.endsWith(":timestamp"))),
    ...options,
  });
  if ("empty" in parsed) return [];
  return parsed.filter(({ contents }) => contents !== null && !(isScalar(contents) && contents.value === null));
}
