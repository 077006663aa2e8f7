"""A hospital's export, as small as the tests need it."""
import pytest


def write_export(folder, numbers=("0047", "0047", "0048"), **fields):
    "DICOM files without pictures, one for each accession number, in turn PA and lateral; `fields` replace what their headers say."
    pydicom = pytest.importorskip("pydicom")
    (folder/"DICOM").mkdir(exist_ok=True)
    for i, number in enumerate(numbers):
        head = pydicom.Dataset()
        head.file_meta = pydicom.dataset.FileMetaDataset()
        head.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        head.file_meta.MediaStorageSOPClassUID = head.file_meta.MediaStorageSOPInstanceUID = "1.2"
        own = dict(AccessionNumber=number, PatientID=f"P{number}", ViewPosition="PA" if i % 2 == 0 else "LL", StudyInstanceUID=f"1.2.{number}")
        for name, value in (own | fields).items(): setattr(head, name, value)
        head.save_as(folder/f"DICOM/IM{i:06}", enforce_file_format=True)
