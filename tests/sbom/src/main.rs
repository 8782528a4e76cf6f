//! Prints the SBOM of the programs that ship: CycloneDX 1.5 as JSON. The same checkout and tools give the same text.

fn main() -> anyhow::Result<()> {
    println!("{:#}", sbom::bom()?);
    Ok(())
}
